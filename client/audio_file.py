"""Sound in files: any WAV, FLAC, OGG or MP3 in, WAV out."""

from io import SEEK_SET, BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from client.errors import InputError
from client.pcm import Samples

MAXIMUM_SECONDS = 300
"""The longest a user turn may be."""

RATES_HZ = range(1_000, 384_001)
MAXIMUM_CHANNELS = 64
BLOCK_SAMPLES = 2**18
LENGTH_UNKNOWN = 0x7FFF0000
"""Writers that cannot go back to fill in a WAV's length leave at least this."""


def read_audio(path: Path, sample_rate_hz: int, *, maximum_seconds: float = MAXIMUM_SECONDS) -> Samples:
    """Mono float32 samples of a file at `sample_rate_hz`: channels averaged, resampled once.

    InputError when the file is missing, empty, cut short, longer than `maximum_seconds` or not sound; one that is too
    long is refused before it is decoded.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: not a file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        with path.open("rb") as source:
            check_complete(str(path), source)
        # By name, so that the library itself seeks. From the root on, for it takes "-" for the standard input.
        return decode(str(path), path.absolute(), sample_rate_hz, maximum_seconds)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_audio_bytes(
    data: bytes, sample_rate_hz: int, *, name: str, maximum_seconds: float = MAXIMUM_SECONDS
) -> Samples:
    """As `read_audio`, of a file that is in memory; errors call it by `name`."""
    if not data:
        raise InputError(f"{name}: the file is empty")
    source = FileInMemory(data)
    check_complete(name, source)
    source.seek(0)
    return decode(name, source, sample_rate_hz, maximum_seconds)


class FileInMemory(BytesIO):
    """Bytes that the sound library may be led before the beginning of: as a file, it stays where it is then."""

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Goes there, if there is such a place."""
        # An exception would not reach the library, which is told the position, but be printed.
        return self.tell() if whence == SEEK_SET and offset < 0 else super().seek(offset, whence)


def decode(name: str, source: Path | BinaryIO, sample_rate_hz: int, maximum_seconds: float) -> Samples:
    """The samples of a complete file."""
    try:
        with soundfile.SoundFile(source) as sound:
            rate, channels, frame_count = sound.samplerate, sound.channels, sound.frames
            if rate not in RATES_HZ:
                raise InputError(f"{name}: {rate} Hz is no sound; expected {RATES_HZ[0]} to {RATES_HZ[-1]} Hz")
            if channels > MAXIMUM_CHANNELS:
                raise InputError(f"{name}: {channels} channels; expected at most {MAXIMUM_CHANNELS}")
            if frame_count > maximum_seconds * rate:
                raise InputError(f"{name}: {frame_count / rate:.0f} s long; expected at most {maximum_seconds:g} s")
            # Block by block, for 300 s at 384,000 Hz would take half a gigabyte; the result is that of all at once.
            resampled = None if rate == sample_rate_hz else soxr.ResampleStream(rate, sample_rate_hz, 1, "float32")
            blocks, read_count = [], 0
            while read_count < frame_count:
                block = sound.read(BLOCK_SAMPLES // channels, dtype="float32", always_2d=True)
                if not len(block):
                    raise InputError(f"{name}: the file is cut short: {read_count} of {frame_count} samples are there")
                read_count += len(block)
                with np.errstate(all="ignore"):
                    mono = block.mean(axis=1, dtype=np.float32)
                blocks.append(resampled.resample_chunk(mono, read_count >= frame_count) if resampled else mono)
    except soundfile.LibsndfileError as error:
        cause = error.error_string.removeprefix("Error : ").rstrip(".")
        raise InputError(f"{name}: damaged, or not a WAV, FLAC, OGG or MP3 file ({cause})") from None
    except TypeError:  # a name that ends in .raw makes the library expect samples without a header
        raise InputError(f"{name}: not a WAV, FLAC, OGG or MP3 file") from None
    if not read_count:
        raise InputError(f"{name}: there is no sound in the file")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: the samples are not numbers (NaN or infinity)")
    return samples


def check_complete(name: str, source: BinaryIO) -> None:
    """Refuses a WAV or OGG file that is cut short, which the library would read as a shorter one."""
    head = source.read(4)
    size = source.seek(0, 2)
    if head == b"RIFF":
        missing = missing_wav_bytes(source, size)
        if missing:
            raise InputError(f"{name}: the file is cut short: {missing} bytes of sound are missing")
    elif head == b"OggS" and not has_last_ogg_page(source, size):
        raise InputError(f"{name}: the file is cut short: its last page is missing")


def missing_wav_bytes(source: BinaryIO, size: int) -> int:
    """Bytes that the data chunk announces and the file does not have."""
    position = 12
    while position + 8 <= size:
        source.seek(position)
        header = source.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            return 0 if length >= LENGTH_UNKNOWN else max(0, position + 8 + length - size)
        position += 8 + length + length % 2
    return 0


def has_last_ogg_page(source: BinaryIO, size: int) -> bool:
    """Whether the file ends with a whole page that is marked as the last of its stream."""
    source.seek(max(0, size - 2**17))  # a page has at most 65,307 bytes
    tail = source.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) >= 27 + len(segments) + sum(segments)


def check_writable(path: Path) -> None:
    """Refuses a name that a WAV file cannot be written to, before any work is done for it."""
    if path.suffix.lower() != ".wav":
        raise InputError(f"{path}: sound is written as WAV; give a name that ends in .wav")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: " + ("is a folder" if path.is_dir() else f"there is no folder {path.parent}"))


def write_audio(path: Path, samples: Samples, sample_rate_hz: int) -> None:
    """Writes float32 samples of shape [samples], or [samples, channels], clipped to -1 ..= 1, as a 16-bit WAV."""
    integers = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    wav = BytesIO()
    soundfile.write(wav, integers, sample_rate_hz, format="WAV", subtype="PCM_16")
    try:
        path.write_bytes(wav.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
