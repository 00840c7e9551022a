"""Sound that a request brings along: a file in base64 or in a form, never a name of one."""

import base64
import binascii
import re

from client.audio_file import MAXIMUM_SECONDS, read_audio_bytes
from client.errors import InputError
from client.pcm import Samples
from services.gateway.errors import invalid

KINDS = "WAV, MP3, FLAC or OGG"
DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(;[^;,]*)*),", re.IGNORECASE)
SOMEWHERE_ELSE = re.compile(r"[a-z][a-z0-9+.-]*://|file:", re.IGNORECASE)
ENVELOPE_CHARACTERS = 200
"""More of the text than a data URL has before its data."""


def read_base64_sound(
    text: str, param: str, *, sample_rate_hz: int, maximum_seconds: float = MAXIMUM_SECONDS
) -> Samples:
    """Mono samples at a rate, of a WAV, MP3, FLAC or OGG file in base64, by itself or as a data URL.

    Refusal, which names the field `param`, for anything else. It blocks, for seconds where there are minutes of sound.
    """
    head = text[:ENVELOPE_CHARACTERS].lstrip()
    if SOMEWHERE_ELSE.match(head):
        raise invalid(
            f"{param}: sound is sent along, in base64; URLs and paths are not opened", param, "url_not_supported"
        )
    if head[:5].lower() == "data:":
        text = _data_of_url(text.lstrip(), param)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{param}: expected base64, got something else ({error})", param, "invalid_base64") from None
    return read_sound(data, param, sample_rate_hz=sample_rate_hz, maximum_seconds=maximum_seconds)


def read_sound(data: bytes, param: str, *, sample_rate_hz: int, maximum_seconds: float = MAXIMUM_SECONDS) -> Samples:
    """As `read_base64_sound`, of the file itself."""
    if not is_sound_file(data):
        raise invalid(f"{param}: expected a {KINDS} file, got something else", param, "invalid_audio")
    try:
        return read_audio_bytes(data, sample_rate_hz, name=param, maximum_seconds=maximum_seconds)
    except InputError as refusal:
        raise invalid(str(refusal), param, "invalid_audio") from None


def is_sound_file(data: bytes) -> bool:
    """Whether it begins as one of the kinds does that are read: the library knows many more, which nobody sends."""
    head = data[:12]
    is_wav = head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE"
    is_mp3 = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    return is_wav or is_mp3 or head[:4] in (b"fLaC", b"OggS")


def _data_of_url(url: str, param: str) -> str:
    match = DATA_URL.match(url[:ENVELOPE_CHARACTERS])
    if match is None or not match["parameters"].lower().endswith(";base64"):
        raise invalid(f"{param}: a data URL must be as data:audio/wav;base64,…", param, "invalid_data_url")
    if not match["type"].lower().startswith("audio/"):
        raise invalid(f"{param}: expected audio, got data of type {match['type']!r}", param, "invalid_data_url")
    return url[match.end() :]
