"""API keys: who calls, and what that key opens."""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.runtime.errors import PermissionDenied, Unauthenticated
from services.runtime.file_value import FileUnusable, FileValue, read_bytes

Scope = Literal["converse", "voices:read", "voices:write"]
Metadata = Sequence[tuple[str, str | bytes]]

KEY_ID = r"[a-z0-9_-]{1,64}"
# 256 random bits that nobody guesses: a plain SHA-256 keeps them. Salt and many rounds are for what people think up.
KEY = re.compile(rf"chroma_({KEY_ID})_[A-Za-z0-9_-]{{43}}")
NO_DIGEST = bytes(32)


@dataclass(frozen=True)
class Quota:
    """What a key may use at once and in a time; None is no limit of its own. Audio is in seconds."""

    sessions: int | None = None
    audio_seconds_per_minute: float | None = None
    audio_seconds_per_hour: float | None = None
    audio_seconds_per_day: float | None = None


@dataclass(frozen=True)
class Caller:
    """Whose call it is; `key_id` is None where the mesh asks for no keys."""

    key_id: str | None = None
    quota: Quota = Quota()


_caller: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - Caller is frozen


def current_caller() -> Caller:
    """Who makes the running call."""
    return _caller.get()


@contextmanager
def with_caller(caller: Caller) -> Iterator[None]:
    """Within the block, the call is this caller's, and its log lines say so by the key's id."""
    if caller.key_id is None:
        yield
        return
    token = _caller.set(caller)
    try:
        with structlog.contextvars.bound_contextvars(key_id=caller.key_id):
            yield
    finally:
        _caller.reset(token)


def admit_anybody(_method: str, _metadata: Metadata) -> Caller:
    """Lets every call in: the mesh asks for no keys."""
    return Caller()


class _KeyEntry(BaseModel):
    """A key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: list[Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]] = Field(min_length=1)
    scopes: list[Scope]
    sessions: int | None = Field(None, ge=1)
    audio_seconds_per_minute: float | None = Field(None, gt=0)
    audio_seconds_per_hour: float | None = Field(None, gt=0)
    audio_seconds_per_day: float | None = Field(None, gt=0)


class _KeyFile(BaseModel):
    """The file: a table `keys` by id."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keys: dict[Annotated[str, StringConstraints(pattern=f"^{KEY_ID}$")], _KeyEntry]


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key: digests of it (two while it is being replaced), what it opens and how much of that."""

    digests: tuple[bytes, ...]
    scopes: frozenset[Scope]
    caller: Caller


class ApiKeys:
    """The keys of a file, as it is at each call; raises FileUnusable when it is no good at first.

    `scopes` says what each method needs; a method that it does not name is open to nobody.
    """

    def __init__(self, path: Path, scopes: Mapping[str, Scope]) -> None:
        self._keys = FileValue([path], lambda: read_keys(path), what="the file of API keys")
        self._scopes = scopes

    @property
    def count(self) -> int:
        """Keys in the file."""
        return len(self._keys.current())

    def admit(self, method: str, metadata: Metadata) -> Caller:
        """The caller of a method ("/package.Service/Method") by its metadata.

        Raises Unauthenticated without a key, PermissionDenied with a wrong one or one that lacks the method's scope.
        """
        key = self._key(_bearer(metadata))
        scope = self._scopes.get(method)
        if scope is None or scope not in key.scopes:
            raise PermissionDenied(
                f"the key must have the scope {scope or 'of this method'}", reason="SCOPE_MISSING", scope=scope or ""
            )
        return key.caller

    def _key(self, secret: str) -> ApiKey:
        match = KEY.fullmatch(secret)
        key = self._keys.current().get(match[1]) if match else None
        given = hashlib.sha256(secret.encode()).digest()
        # All are compared, and one where there is none: how long it takes tells nothing.
        equal = [hmac.compare_digest(given, digest) for digest in (key.digests if key else (NO_DIGEST,))]
        if key is None or not any(equal):
            raise PermissionDenied("the API key is not one of this mesh's", reason="WRONG_KEY")
        return key


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys in a file by id; raises FileUnusable, which repeats nothing of the file: it may be a key by mistake."""
    try:
        file = _KeyFile.model_validate(tomllib.loads(read_bytes(path).decode()))
    except UnicodeDecodeError as failure:
        raise FileUnusable(f"{path} must be UTF-8") from failure
    except tomllib.TOMLDecodeError as failure:
        raise FileUnusable(f"{path} must be TOML: {failure}") from None
    except ValidationError as failure:
        entry = failure.errors()[0]
        where = ".".join(str(part) for part in entry["loc"] if part != "[key]")
        raise FileUnusable(f"{path} has no good keys: {where}: {entry['msg']}") from None
    return {
        key_id: ApiKey(
            digests=tuple(bytes.fromhex(digest) for digest in entry.sha256),
            scopes=frozenset(entry.scopes),
            caller=Caller(key_id, Quota(**entry.model_dump(exclude={"sha256", "scopes"}))),
        )
        for key_id, entry in file.keys.items()
    }


def _bearer(metadata: Metadata) -> str:
    given = [value for name, value in metadata if name == "authorization"]
    scheme, _, secret = given[0].partition(" ") if len(given) == 1 and isinstance(given[0], str) else ("", "", "")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("a call must have an API key, as authorization: Bearer <key>", reason="NO_KEY")
    return secret.strip()
