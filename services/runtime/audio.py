"""Mono PCM between numpy and the wire."""

import numpy as np
from chroma_mesh.types.v1 import types_pb2
from numpy.typing import NDArray

from services.runtime.errors import Internal, InvalidArgument


def decode_pcm(data: bytes, encoding: types_pb2.AudioEncoding, *, field: str) -> NDArray[np.float32]:
    """Samples [count] as writable float32, full scale 1, from PCM bytes; no bytes are no samples.

    Raises InvalidArgument for a part of a sample, or a float sample that is not finite.
    """
    dtype = _dtype(encoding)
    if len(data) % dtype.itemsize:
        raise InvalidArgument(
            f"{field} must be whole samples of {dtype.itemsize} bytes, got {len(data)} bytes",
            reason="PARTIAL_SAMPLE",
            field=field,
        )
    samples = np.frombuffer(data, dtype=dtype).astype(np.float32)
    if encoding == types_pb2.AUDIO_ENCODING_PCM_S16LE:
        samples /= np.float32(32768)
    elif not np.isfinite(samples).all():
        raise InvalidArgument(f"{field} must be finite, got NaN or infinity", reason="NON_FINITE", field=field)
    return samples


def encode_pcm(samples: NDArray[np.float32], encoding: types_pb2.AudioEncoding) -> bytes:
    """PCM bytes from float samples; 16-bit ones are clipped at full scale, floats are kept as they are.

    Raises Internal with reason NON_FINITE for NaN and infinities.
    """
    if not np.isfinite(samples).all():
        raise Internal("sound to be sent must be finite, got NaN or infinity", reason="NON_FINITE")
    dtype = _dtype(encoding)
    if encoding == types_pb2.AUDIO_ENCODING_PCM_S16LE:
        samples = np.rint(np.clip(samples, -1, 1) * np.float32(32767))
    return samples.astype(dtype).tobytes()


def check_format(audio_format: types_pb2.AudioFormat, *, sample_rate_hz: int, field: str) -> types_pb2.AudioEncoding:
    """The format's encoding; an unknown one, or another rate than `sample_rate_hz`, raises InvalidArgument."""
    known = (types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE)
    if audio_format.encoding not in known:
        raise InvalidArgument(
            f"{field}.encoding must be PCM_S16LE or PCM_F32LE, got {audio_format.encoding}",
            reason="WRONG_ENCODING",
            field=f"{field}.encoding",
        )
    if audio_format.sample_rate_hz != sample_rate_hz:
        raise InvalidArgument(
            f"{field}.sample_rate_hz must be {sample_rate_hz}, got {audio_format.sample_rate_hz}",
            reason="WRONG_SAMPLE_RATE",
            field=f"{field}.sample_rate_hz",
        )
    return audio_format.encoding


def check_duration(
    sample_count: int, *, sample_rate_hz: int, minimum_seconds: float, maximum_seconds: float, field: str
) -> None:
    """Refuses sound that is shorter than the minimum or longer than the maximum, both of which are allowed."""
    seconds = sample_count / sample_rate_hz
    if not minimum_seconds <= seconds <= maximum_seconds:
        raise InvalidArgument(
            f"{field} must be {minimum_seconds:g} to {maximum_seconds:g} seconds long, got {seconds:g}",
            reason="TOO_SHORT" if seconds < minimum_seconds else "TOO_LONG",
            field=field,
        )


def _dtype(encoding: types_pb2.AudioEncoding) -> np.dtype[np.generic]:
    match encoding:
        case types_pb2.AUDIO_ENCODING_PCM_S16LE:
            return np.dtype("<i2")
        case types_pb2.AUDIO_ENCODING_PCM_F32LE:
            return np.dtype("<f4")
        case _:
            raise ValueError(f"encoding must be checked at open, got {encoding}")
