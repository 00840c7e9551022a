"""The formats a session may have, turned into the sound that the model hears and from the sound that it speaks.

Telephones' G.711 (µ-law and A-law) is read and written by libsndfile, which has every value of the standard: once for
each object, into tables, for a packet of 20 ms is not worth opening a file in memory.

Sound is resampled by soxr's variable-rate engine, whose rate is never varied here. soxr's usual engine filters in large
blocks and waits until they are full: at 24,000 → 8,000 Hz its HQ setting holds back 12 to 73 ms, rising and falling, at
8,000 → 16,000 Hz 12 to 116 ms. Its lower settings are no way out: MQ waits as long, LQ up to 40 and 61 ms and takes
8 dB of the voice at 3.4 kHz, QQ lets aliases through. The variable-rate engine works sample by sample and always holds
back the same:

| from → to, Hz   | held back |
|-----------------|-----------|
| 8,000 → 16,000  | 30 ms     |
| 24,000 → 16,000 | 10 ms     |
| 48,000 → 16,000 | 12.5 ms   |
| 24,000 → 8,000  | 25 ms     |
| 24,000 → 48,000 | 10 ms     |

So a listener at 8,000 Hz gets 55 ms of sound with the first frame and then 80 ms with each, and where the mesh itself
listens for the end of a turn, it hears all of it up to 30 ms later. `end` waits for nothing. Up to 0.9 of the highest
pitch that the lower rate can carry it is flat within 0.01 dB, from 1.03 on all is more than 100 dB down. The price is
in its downward filters, which are not of linear phase: 0.1 to 0.4 ms of delay in most of the voice, some 1 ms near the
upper end. Neither engine's bits depend on the packets.
"""

import io
from typing import Literal, TypeAlias

import numpy as np
import soundfile
import soxr
from chroma_mesh.types.v1 import types_pb2
from numpy.typing import NDArray

from services.runtime.audio import decode_pcm, encode_pcm
from services.runtime.errors import InvalidArgument

HEARD_RATE_HZ = 16_000
SPOKEN_RATE_HZ = 24_000
TELEPHONE_RATE_HZ = 8_000
SESSION_RATES_HZ = (8_000, 16_000, 24_000, 48_000)

Law: TypeAlias = Literal["ULAW", "ALAW"]


def check_session_format(audio_format: types_pb2.AudioFormat, field: str) -> None:
    """Refuses with InvalidArgument what is not 16-bit or float PCM at a session's rates, or G.711 at 8,000 Hz."""
    pcm = (types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE)
    if audio_format.encoding in pcm:
        rates_hz: tuple[int, ...] = SESSION_RATES_HZ
    elif _law(audio_format.encoding) is not None:
        rates_hz = (TELEPHONE_RATE_HZ,)
    else:
        raise InvalidArgument(
            f"{field}.encoding must be PCM_S16LE, PCM_F32LE, MULAW or ALAW, got {audio_format.encoding}",
            reason="WRONG_ENCODING",
            field=f"{field}.encoding",
        )
    if audio_format.sample_rate_hz not in rates_hz:
        *others, last = map(str, rates_hz)
        expected = f"{', '.join(others)} or {last}" if others else f"{last} in G.711"
        raise InvalidArgument(
            f"{field}.sample_rate_hz must be {expected}, got {audio_format.sample_rate_hz}",
            reason="WRONG_SAMPLE_RATE",
            field=f"{field}.sample_rate_hz",
        )


class HeardSound:
    """What the user says, as it arrives: bytes in a session's format → mono float32 samples at 16,000 Hz, full scale 1.

    The samples do not depend on how the bytes are cut into packets; sound at 16,000 Hz passes unchanged. `hear` and
    `end` together give round(n · 16,000 / rate) samples for the n that were heard.
    """

    def __init__(self, audio_format: types_pb2.AudioFormat) -> None:
        """The format is one that `check_session_format` lets pass."""
        self.heard_sample_count = 0
        """Input samples heard since the object was made or `end` was called."""
        self._encoding = audio_format.encoding
        law = _law(audio_format.encoding)
        self._decoded = None if law is None else _decoding_table(law)
        self._resampler = _resampler(audio_format.sample_rate_hz, HEARD_RATE_HZ)

    def hear(self, data: bytes) -> NDArray[np.float32]:
        """Samples [count] that are complete with this packet, of any number of samples; possibly none.

        Raises InvalidArgument for a part of a sample, or floats that are not finite (or too large to be resampled).
        """
        samples = self._decode(data)
        self.heard_sample_count += len(samples)
        return samples if self._resampler is None else _finite(self._resampler.add(samples))

    def end(self) -> NDArray[np.float32]:
        """The samples [count] that were still held back, the turn being over; afterwards the object is as new."""
        self.heard_sample_count = 0
        return np.empty(0, np.float32) if self._resampler is None else _finite(self._resampler.end())

    def _decode(self, data: bytes) -> NDArray[np.float32]:
        if self._decoded is None:
            return decode_pcm(data, self._encoding, field="audio.data")
        return self._decoded[np.frombuffer(data, np.uint8)]


class SpokenSound:
    """A reply's sound as it is made: mono float32 samples at 24,000 Hz → bytes in a session's format.

    The bytes, joined, do not depend on how the samples are cut; sound at 24,000 Hz is only encoded. `speak` and `end`
    together give round(n · rate / 24,000) samples for n.
    """

    def __init__(self, audio_format: types_pb2.AudioFormat) -> None:
        """The format is one that `check_session_format` lets pass."""
        self._encoding = audio_format.encoding
        law = _law(audio_format.encoding)
        self._encoded = None if law is None else _encoding_table(law)
        self._resampler = _resampler(SPOKEN_RATE_HZ, audio_format.sample_rate_hz)

    def speak(self, samples: NDArray[np.float32]) -> bytes:
        """Bytes of the samples that are complete with these; integers are clipped at full scale.

        Raises Internal with reason NON_FINITE for NaN and infinities, at the latest when they leave the resampler.
        """
        return self._encode(samples if self._resampler is None else self._resampler.add(samples))

    def end(self) -> bytes:
        """The bytes of what was still held back, the reply being over; afterwards the object is as new."""
        return b"" if self._resampler is None else self._encode(self._resampler.end())

    def _encode(self, samples: NDArray[np.float32]) -> bytes:
        if self._encoded is None:
            return encode_pcm(samples, self._encoding)
        integers = encode_pcm(samples, types_pb2.AUDIO_ENCODING_PCM_S16LE)
        return self._encoded[np.frombuffer(integers, "<u2")].tobytes()


class _Resampler:
    """soxr with an exact number of samples: for n at one rate, the whole number that is nearest to n at the other."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._from_hz = from_hz
        self._to_hz = to_hz
        self._stream = soxr.ResampleStream(from_hz, to_hz, num_channels=1, dtype="float32", quality="HQ", vr=True)
        self._in_count = 0
        self._out_count = 0

    def add(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples that are complete with these."""
        resampled: NDArray[np.float32] = self._stream.resample_chunk(samples)
        self._in_count += len(samples)
        self._out_count += len(resampled)
        return resampled

    def end(self) -> NDArray[np.float32]:
        """The samples that are left; afterwards all begins anew."""
        # No rate of a session puts the exact count between two whole numbers, so that 'nearest' is never a choice.
        missing_count = round(self._in_count * self._to_hz / self._from_hz) - self._out_count
        # soxr alone may end a sample early. With silence behind the sound it gives too many, of which the first count.
        silence = np.zeros(self._from_hz // 100, np.float32)
        rest: NDArray[np.float32] = self._stream.resample_chunk(silence, last=True)[:missing_count]
        assert len(rest) == missing_count, f"soxr gave {len(rest)} of {missing_count} last samples"
        self._stream.clear()
        self._in_count = self._out_count = 0
        return rest


def _resampler(from_hz: int, to_hz: int) -> _Resampler | None:
    return None if from_hz == to_hz else _Resampler(from_hz, to_hz)


def _law(encoding: types_pb2.AudioEncoding) -> Law | None:
    match encoding:
        case types_pb2.AUDIO_ENCODING_MULAW:
            return "ULAW"
        case types_pb2.AUDIO_ENCODING_ALAW:
            return "ALAW"
        case _:
            return None


def _decoding_table(law: Law) -> NDArray[np.float32]:
    """The sample, full scale 1, for each of the 256 bytes."""
    every_byte = io.BytesIO(bytes(range(256)))
    integers, _ = soundfile.read(
        every_byte, format="RAW", subtype=law, samplerate=TELEPHONE_RATE_HZ, channels=1, dtype="int16"
    )
    return integers.astype(np.float32) / np.float32(32768)


def _encoding_table(law: Law) -> NDArray[np.uint8]:
    """The byte for each 16-bit sample; negative samples are at the index that their bits are as an unsigned number."""
    every_integer = np.arange(65536, dtype=np.uint16).view(np.int16)
    written = io.BytesIO()
    soundfile.write(written, every_integer, TELEPHONE_RATE_HZ, format="RAW", subtype=law)
    return np.frombuffer(written.getvalue(), np.uint8)


def _finite(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuses what finite floats far beyond full scale become in the resampler."""
    if not np.isfinite(samples).all():
        raise InvalidArgument(
            "audio.data must be sound with a full scale of 1, got floats that are too large to be resampled",
            reason="NON_FINITE",
            field="audio.data",
        )
    return samples
