"""Ids of replies that can be named in a later turn, at any gateway: such an id is the reply's text itself."""

import base64
import binascii
import secrets
import zlib

from services.gateway.errors import invalid

PREFIX = "audio_v1_"
NONCE_CHARACTERS = 12
TEXT_LIMIT_BYTES = 1024 * 1024
NEVER = 4_102_444_800
"""The id is good for ever; the answer must have a time, and clients must be able to read it: the year 2100."""


def new_audio_id(transcript: str) -> str:
    """An id of a reply with this text: `audio_v1_`, twelve random characters, and the text in zlib and base64."""
    packed = base64.urlsafe_b64encode(zlib.compress(transcript.encode(), 9)).decode().rstrip("=")
    return f"{PREFIX}{secrets.token_hex(NONCE_CHARACTERS // 2)}{packed}"


def transcript_of(audio_id: str, param: str) -> str:
    """The text of the reply with this id; Refusal for one that was never given."""
    packed = audio_id.removeprefix(PREFIX)[NONCE_CHARACTERS:]
    unpacking = zlib.decompressobj()
    try:
        if not audio_id.startswith(PREFIX):
            raise ValueError
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        text = unpacking.decompress(data, TEXT_LIMIT_BYTES).decode()
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError
    except (binascii.Error, zlib.error, ValueError):
        raise invalid(f"{param}: there is no reply with this id", param, "audio_not_found") from None
    return text
