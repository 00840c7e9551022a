"""The reply's sound as a file."""

from io import BytesIO
from typing import Literal

import numpy as np
import soundfile

from client.pcm import VOICE_RATE_HZ

SoundFileFormat = Literal["wav", "mp3", "flac", "opus", "pcm16"]

CONTAINERS: dict[SoundFileFormat, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "flac": ("FLAC", "PCM_16"),
    "opus": ("OGG", "OPUS"),
}
"""How the library calls the container and the coding of each format; pcm16 has neither."""

BLOCK_SAMPLES = VOICE_RATE_HZ
"""So much is coded at a time: minutes at once are more than some coders take."""


def sound_file(pcm: bytes, sound_format: SoundFileFormat) -> bytes:
    """A file of mono sound at 24,000 Hz, of its samples as 16-bit little-endian integers; pcm16 is these alone.

    WAV and FLAC hold the very samples. Of no samples only a WAV can be made, anything else is no bytes. It blocks: Opus
    takes a thirtieth of the sound's duration.
    """
    if sound_format == "pcm16" or (not pcm and sound_format != "wav"):
        return pcm
    container, coding = CONTAINERS[sound_format]
    samples = np.frombuffer(pcm, "<i2")
    written = BytesIO()
    with soundfile.SoundFile(written, "w", VOICE_RATE_HZ, 1, coding, format=container) as file:
        for start in range(0, len(samples), BLOCK_SAMPLES):
            file.write(samples[start : start + BLOCK_SAMPLES])
    return written.getvalue()
