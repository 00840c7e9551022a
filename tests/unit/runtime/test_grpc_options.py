"""gRPC takes no notice of an option whose name it does not know: each of ours must be one of its own."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from services.runtime.channel import open_channel
from services.runtime.server import running
from services.runtime.settings import ServiceSettings


async def nothing() -> None:
    """Neither loads nor closes anything."""


@pytest.fixture(scope="module")
def library() -> bytes:
    """gRPC itself."""
    return Path(cygrpc.__file__).read_bytes()


async def test_grpc_knows_every_option(monkeypatch: pytest.MonkeyPatch, library: bytes) -> None:
    asked: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def keep(*_: Any, options: Any, **__: Any) -> Any:
        asked.update(options)
        raise Stop

    monkeypatch.setattr(grpc.aio, "insecure_channel", keep)
    monkeypatch.setattr(grpc.aio, "server", keep)
    with pytest.raises(Stop):
        open_channel("127.0.0.1:1", service="a", read_ahead_bytes=1)
    with pytest.raises(Stop):
        async with running(
            stage="codec",
            settings=ServiceSettings(),
            add=lambda _: None,
            services=[],
            prepare=nothing,
            close=nothing,
            registry=None,  # type: ignore[arg-type]
        ):
            pytest.fail("it must not come up")
    assert len(asked) > 15
    assert [name for name in asked if name.encode() + b"\0" not in library] == []
