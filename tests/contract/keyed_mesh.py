"""A mesh of fake stages whose front asks for API keys."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from client import Access, Mesh, connect
from client.api_key import KeyLimits, Scope, new_key
from services.orchestrator.service import SCOPES, SERVICE
from services.runtime.api_keys import ApiKeys
from services.runtime.server import running
from services.runtime.settings import ServiceSettings
from tests.contract import fake_mesh


class KeyFile:
    """A file of keys, and the keys themselves, by id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        self._write()

    def add(self, key_id: str, *scopes: Scope, **limits: Any) -> str:
        """Makes a key, or a new one in another's place; returns its secret."""
        key = new_key(key_id, list(scopes or Scope), KeyLimits(**limits))
        self.secrets[key_id], self._entries[key_id] = key.secret, key.entry
        self._write()
        return key.secret

    def limit(self, key_id: str, *scopes: Scope) -> None:
        """Lets a key open these and nothing else from now on."""
        entry = self._entries[key_id]
        self._entries[key_id] = re.sub(r"scopes = .*", f"scopes = {list(scopes)}", entry)
        self._write()

    def remove(self, key_id: str) -> None:
        del self._entries[key_id]
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n\n".join(self._entries.values()) if self._entries else "[keys]")
        fresh.replace(self.path)


@dataclass
class KeyedMesh:
    """The fake stages, the front's address, and the keys that it asks for."""

    fakes: fake_mesh.Mesh
    address: str
    keys: KeyFile

    def connect(self, key_id: str | None) -> Mesh:
        """The mesh as the holder of a key has it, or as somebody without one."""
        return connect(self.address, Access(api_key=None if key_id is None else self.keys.secrets[key_id]))


@asynccontextmanager
async def keyed_mesh(
    folder: Path, *, front: ServiceSettings | None = None, **settings: Any
) -> AsyncIterator[KeyedMesh]:
    """A mesh with keys alice and bob; `settings` are the orchestrator's, `front` its server's."""
    keys = KeyFile(folder / "keys.toml")
    keys.add("alice")
    keys.add("bob")
    async with (
        fake_mesh.Mesh().running(**settings) as fakes,
        running(
            stage="orchestrator",
            settings=front or ServiceSettings(),
            add=fakes.service.add_to,
            services=[SERVICE],
            prepare=_nothing,
            close=_nothing,
            registry=CollectorRegistry(),
            admit=ApiKeys(keys.path, SCOPES).admit,
        ) as server,
    ):
        yield KeyedMesh(fakes, server.address, keys)


async def _nothing() -> None:
    pass
