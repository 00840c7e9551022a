"""Ids travel with calls, from the caller's context into the handler's and its log lines."""

import re
from typing import Any

import pytest
import structlog
from chroma_mesh.codec.v1 import codec_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.interceptors import Ids, current_ids, incoming_ids, with_ids
from services.runtime.tracing import TRACEPARENT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_ids_of_the_caller_are_the_handlers(codec: Any) -> None:
    seen: list[Ids] = []
    lines: list[dict[str, Any]] = []

    async def encode(_request: Any, _context: Any) -> Any:
        seen.append(current_ids())
        lines.append(structlog.contextvars.get_contextvars())
        return codec_pb2.EncodeResponse()

    async def decode(_requests: Any, _context: Any) -> None:
        seen.append(current_ids())

    async with codec(encode=encode, decode=decode) as stub:
        with with_ids(session_id="s1", turn_index=0, traceparent=PARENT) as ids:
            await stub.Encode(codec_pb2.EncodeRequest())
            await stub.Decode().read()
        await stub.Encode(codec_pb2.EncodeRequest(), metadata=(("x-session-id", "s2"),))
    assert seen[:2] == [ids, ids]
    assert lines[0] == {"session_id": "s1", "turn_index": 0, "trace_id": PARENT.split("-")[1]}
    assert (seen[2].session_id, seen[2].turn_index) == ("s2", None)
    assert re.fullmatch(TRACEPARENT, seen[2].traceparent or "")
    assert current_ids() == Ids()
    assert structlog.contextvars.get_contextvars() == {}


def test_ids_nest() -> None:
    with with_ids(session_id="s1"):
        with with_ids(turn_index=3):
            assert current_ids() == Ids(session_id="s1", turn_index=3)
        assert current_ids() == Ids(session_id="s1")
    assert current_ids() == Ids()


@pytest.mark.parametrize(
    "traceparent",
    ["", "garbage", PARENT.upper(), PARENT + "-more", f"00-{'0' * 32}-b7ad6b7169203331-01", PARENT.replace("-01", "")],
)
def test_a_malformed_traceparent_is_replaced(traceparent: str) -> None:
    made = incoming_ids([("traceparent", traceparent)]).traceparent
    assert made is not None
    assert made != traceparent
    assert TRACEPARENT.fullmatch(made)


@given(st.text(max_size=8))
def test_a_turn_index_is_a_number_or_left_out(text: str) -> None:
    turn_index = incoming_ids([("x-turn-index", text)]).turn_index
    assert turn_index == (int(text) if re.fullmatch("[0-9]+", text) else None)
