"""What `chroma-mesh call` is asked to do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from client.access import Access
from client.call.script import Script
from client.errors import InputError
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding
from client.session_settings import ServerVad, SessionSettings, SoundFormat


class CallFormat(StrEnum):
    """How sound is sent in both directions."""

    PCM16 = "pcm16"
    F32 = "f32"
    MULAW = "mulaw"
    ALAW = "alaw"

    @property
    def encoding(self) -> Encoding:
        """The encoding of the samples."""
        return Encoding.S16 if self is CallFormat.PCM16 else Encoding(self.value)


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """Whom to call and how; `script` is None for a person at the microphone.

    `speed`: how many times as fast as real time the caller lives; `out` and `json` are files to write, where given.
    """

    addresses: Sequence[str]
    session: SessionSettings
    script: Script | None
    packet_ms: int
    speed: float
    out: Path | None
    json: Path | None
    access: Access | None = None

    def facts(self) -> dict[str, Any]:
        """What a report says of them."""
        sound_formats = {"input": self.session.input_format, "output": self.session.output_format}
        return {
            "address": ",".join(self.addresses),
            **{
                name: {"encoding": sound_format.encoding.value, "sample_rate_hz": sound_format.sample_rate_hz}
                for name, sound_format in sound_formats.items()
            },
            "turn_detection": "manual" if self.session.turn_detection is None else "server_vad",
            "packet_ms": self.packet_ms,
            "speed": self.speed,
        }


def session_settings(
    call_format: CallFormat,
    rate_hz: int | None,
    *,
    is_heard_by_mesh: bool,
    speed: float,
    voice: str | None,
    max_frame_count: int | None,
) -> SessionSettings:
    """The session of a call: without a rate, the usual one of each direction; InputError when it does not fit.

    A mesh lives in real time: to a caller who lives faster it must send replies as fast as it makes them.
    """
    encoding = call_format.encoding
    if rate_hz is not None and rate_hz not in encoding.rates_hz:
        rates = ", ".join(map(str, encoding.rates_hz))
        raise InputError(f"--rate: {call_format.value} has {rates} Hz; got {rate_hz}")
    input_rate_hz, output_rate_hz = (
        rate_hz or (usual if usual in encoding.rates_hz else encoding.rates_hz[0])
        for usual in (USER_RATE_HZ, VOICE_RATE_HZ)
    )
    return SessionSettings(
        voice=voice,
        max_frame_count=max_frame_count,
        input_format=SoundFormat(encoding, input_rate_hz),
        output_format=SoundFormat(encoding, output_rate_hz),
        turn_detection=ServerVad() if is_heard_by_mesh else None,
        ahead_seconds=math.inf if speed > 1 else None,
    )
