"""Every way in for sound, given any bytes: samples that are numbers, or a refusal, and no more memory than they need.

CHROMA_TEST_FUZZ=2000 tries so many examples of each law, others at every run.
"""

import asyncio
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from client.audio_file import read_audio
from client.errors import InputError
from services.orchestrator.opening import voice_example
from services.orchestrator.sound_formats import SESSION_RATES_HZ, HeardSound, check_session_format
from services.orchestrator.stages import CodecFacts
from services.orchestrator.voices import Voices
from services.runtime.audio import decode_pcm
from services.runtime.errors import InvalidArgument
from tests.contract.fuzzed_messages import SOUNDS, any_message

fuzz = settings(
    max_examples=int(os.environ.get("CHROMA_TEST_FUZZ", "100")),
    derandomize="CHROMA_TEST_FUZZ" not in os.environ,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
S16, F32, MULAW, ALAW = 1, 2, 3, 4
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # sound may be long

sounds = st.sampled_from(SOUNDS) | st.binary(max_size=600)
pcm_formats = st.tuples(st.sampled_from([S16, F32]), st.sampled_from(SESSION_RATES_HZ))
session_formats = pcm_formats | st.sampled_from([(MULAW, 8_000), (ALAW, 8_000)])


@contextmanager
def most_bytes(limit: int) -> Iterator[None]:
    """Within the block no more memory is taken than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= limit
    finally:
        tracemalloc.stop()


def refusal_of(call: Callable[[], Any]) -> Any:
    """What a call gives, or the refusal that it raises; anything else that it raises is a bug."""
    try:
        return call()
    except (InvalidArgument, InputError) as refusal:
        return refusal


# --- what comes in messages ------------------------------------------------------------------------------------------


@fuzz
@given(data=sounds, encoding=st.sampled_from([S16, F32]))
def test_any_bytes_are_samples_or_refused(data: bytes, encoding: Any) -> None:
    with most_bytes(16 * len(data) + 100_000):
        samples = refusal_of(lambda: decode_pcm(data, encoding, field="field"))
    if isinstance(samples, InvalidArgument):
        assert samples.reason in ("PARTIAL_SAMPLE", "NON_FINITE")
        assert samples.field == "field"
        return
    assert np.isfinite(samples).all()
    assert len(samples) * (2 if encoding == S16 else 4) == len(data)


@fuzz
@given(audio_format=any_message(types_pb2.AudioFormat))
def test_any_format_is_one_of_a_session_or_refused(audio_format: types_pb2.AudioFormat) -> None:
    refusal = refusal_of(lambda: check_session_format(audio_format, "format"))
    if isinstance(refusal, InvalidArgument):
        assert refusal.field in ("format.encoding", "format.sample_rate_hz")
        return
    HeardSound(audio_format).hear(b"")


@st.composite
def packets(draw: DrawFn) -> tuple[types_pb2.AudioFormat, list[bytes]]:
    """A session's format, and sound in packets of any size, most of them of whole samples."""
    encoding, rate = draw(session_formats)
    data = b"".join(draw(st.lists(sounds.filter(lambda sound: len(sound) < 200_000), max_size=4)))
    sample_bytes = {S16: 2, F32: 4}.get(encoding, 1) if draw(st.integers(0, 4)) else 1
    cuts = draw(st.lists(st.integers(0, len(data) // sample_bytes), max_size=6).map(sorted))
    edges = [0, *(cut * sample_bytes for cut in cuts), len(data)]
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    return audio_format, [data[start:end] for start, end in pairwise(edges)]


@fuzz
@given(given_packets=packets())
def test_any_packets_are_heard_or_refused(given_packets: tuple[types_pb2.AudioFormat, list[bytes]]) -> None:
    audio_format, pieces = given_packets
    sound, sample_count = HeardSound(audio_format), 0

    def hear() -> np.ndarray:
        nonlocal sample_count
        heard = [sound.hear(piece) for piece in pieces]
        sample_count = sound.heard_sample_count
        return np.concatenate([*heard, sound.end()])

    with most_bytes(40 * sum(map(len, pieces)) + 1_000_000):
        samples = refusal_of(hear)
    if isinstance(samples, InvalidArgument):
        assert samples.reason in ("PARTIAL_SAMPLE", "NON_FINITE")
        assert samples.field == "audio.data"
        return
    assert np.isfinite(samples).all()
    assert len(samples) == round(sample_count * 16_000 / audio_format.sample_rate_hz)
    # What was heard spoils nothing that follows.
    sound.hear(bytes(640))
    assert np.isfinite(sound.end()).all()


class NoStages:
    """Gives any sound no frames."""

    codec_facts = CodecFacts(sample_rate_hz=24_000, samples_per_frame=1_920, codebook_count=8, codebook_size=2_048)

    async def encode(self, audio: types_pb2.Audio) -> list[types_pb2.Frame]:
        return []

    async def check_voice(self, prompt: types_pb2.VoicePrompt) -> None:
        pass


@fuzz
@given(audio=any_message(types_pb2.Audio), transcript=st.sampled_from(["hello", "", "\0", "x" * 3_000]))
def test_any_example_is_a_voice_or_refused(audio: types_pb2.Audio, transcript: str) -> None:
    voices = Voices(NoStages(), folder=None, default_voice="ash", voice_limit=1)
    example = voice_example(orchestrator_pb2.VoiceExample(transcript=transcript, audio=audio))
    refusal = refusal_of(lambda: asyncio.run(voices.prompt(example)))
    if isinstance(refusal, InvalidArgument):
        assert refusal.field is not None
        assert refusal.field.startswith("voice_example.")
        assert refusal.reason != "INVALID_ARGUMENT"


# --- what comes in files ---------------------------------------------------------------------------------------------


def written(format_: str, subtype: str | None = None, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A file with a tenth of a second of noise."""
    file = BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 10, channels)).astype(np.float32)
    soundfile.write(file, noise, rate, format=format_, subtype=subtype)
    return file.getvalue()


FILES = (
    written("WAV"), written("WAV", "FLOAT", rate=44_100, channels=2), written("WAV", "IMA_ADPCM"),
    written("WAV", "ULAW"), written("WAVEX", "PCM_24"), written("RF64"), written("W64"), written("AIFF"), written("AU"),
    written("CAF"), written("FLAC"), written("FLAC", rate=48_000, channels=2), written("OGG"), written("OGG", "OPUS"),
    written("MP3"), written("MAT5"), written("NIST"), written("VOC", "PCM_16"), written("SVX"), written("PAF"),
)  # fmt: skip
# What a number in a header may be made to say.
ABSURD = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff", b"\0\0")


@st.composite
def files(draw: DrawFn) -> bytes:
    """A sound file with bytes that are others, lost, doubled or absurd, most of them near its head; or any bytes."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for edit in draw(st.lists(st.sampled_from(["flip", "absurd", "absurd", "cut", "drop", "double"]), max_size=4)):
        at = draw(st.integers(0, min(120, len(data))) | st.integers(0, len(data)))
        match edit:
            case "flip":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "absurd":
                number = draw(st.sampled_from(ABSURD))
                data[at : at + len(number)] = number
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 2_000))]
    return bytes(data)


@fuzz
@given(data=files() | st.binary(max_size=200), suffix=st.sampled_from(["wav", "flac", "ogg", "mp3", "raw", "bin"]))
def test_any_file_is_sound_or_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(data)
    with most_bytes(64 * 2**20):
        samples = refusal_of(lambda: read_audio(path, 16_000, maximum_seconds=10))
    if isinstance(samples, InputError):
        assert str(samples).startswith(f"{path}: ")
        return
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= 10 * 16_000 + 1
