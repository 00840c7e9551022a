"""API keys: made for a mesh's operator to hand out."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from client.errors import InputError

SECRET_BYTES = 32


class Scope(StrEnum):
    """What a key opens: sessions, the list of voices, making and removing voices."""

    CONVERSE = "converse"
    VOICES_READ = "voices:read"
    VOICES_WRITE = "voices:write"


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """What a key may use; None is no limit, or the mesh's default one for sessions. Audio is in seconds."""

    sessions: int | None = None
    audio_seconds_per_minute: float | None = None
    audio_seconds_per_hour: float | None = None
    audio_seconds_per_day: float | None = None


@dataclass(frozen=True)
class NewKey:
    """A key, and what the mesh is told of it, which does not give it away."""

    secret: str
    entry: str


def new_key(key_id: str, scopes: list[Scope], limits: KeyLimits) -> NewKey:
    """A key of 256 random bits and its entry in the file of keys; the id stands in the key, so that it is found."""
    if not re.fullmatch("[a-z0-9_-]{1,64}", key_id):
        raise InputError(f"an id must be 1 to 64 of a-z, 0-9, '-' and '_', got {key_id!r}")
    secret = f"chroma_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    names = ", ".join(f'"{scope}"' for scope in scopes)
    lines = [f"[keys.{key_id}]", f'sha256 = ["{digest}"]', f"scopes = [{names}]"]
    lines += [f"{name} = {value}" for name, value in vars(limits).items() if value is not None]
    return NewKey(secret, "\n".join(lines))
