"""What is heard and spoken does not depend on packets, has exactly its length, and is still the same sound."""

from itertools import pairwise

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import client
from services.orchestrator.sound_formats import HeardSound, SpokenSound, check_session_format
from services.runtime.audio import decode_pcm
from services.runtime.errors import Internal, InvalidArgument

S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
MULAW, ALAW = types_pb2.AUDIO_ENCODING_MULAW, types_pb2.AUDIO_ENCODING_ALAW
SAMPLE_BYTES = {S16: 2, F32: 4, MULAW: 1, ALAW: 1}
RATES_HZ = (8000, 16000, 24000, 48000)
FORMATS = [
    types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    for encoding, rates in ((S16, RATES_HZ), (F32, RATES_HZ), (MULAW, (8000,)), (ALAW, (8000,)))
    for rate in rates
]
LONGEST = 3 * 1920

formats = st.sampled_from(FORMATS)
every_format = pytest.mark.parametrize("audio_format", FORMATS, ids=lambda it: f"{it.encoding}@{it.sample_rate_hz}")
# Sizes of packets, to be repeated: from a sample to the whole, empty ones among them.
packets = st.one_of(
    st.integers(1, LONGEST).map(lambda size: [size]),
    st.lists(st.integers(0, 700), min_size=1, max_size=5).filter(any),
)


def noise(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def tone(rate_hz: int, *, seconds: float = 1.0, pitch_hz: float = 1000.0, level: float = 0.5) -> NDArray[np.float32]:
    seconds_at = np.arange(round(seconds * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * pitch_hz * seconds_at)).astype(np.float32)


def stored(audio_format: types_pb2.AudioFormat, count: int, seed: int = 0) -> bytes:
    """Input of so many samples: noise, or all that bytes can be where each byte is a sample."""
    if audio_format.encoding == F32:
        return noise(count, seed).astype("<f4").tobytes()
    return np.random.default_rng(seed).bytes(count * SAMPLE_BYTES[audio_format.encoding])


def edges(count: int, sizes: list[int]) -> list[tuple[int, int]]:
    at, taken = [0], 0
    while at[-1] < count:
        at.append(min(count, at[-1] + sizes[taken % len(sizes)]))
        taken += 1
    return list(pairwise(at))


def heard(sound: HeardSound, data: bytes, sizes: list[int], sample_bytes: int) -> NDArray[np.float32]:
    cuts = edges(len(data) // sample_bytes, sizes)
    return np.concatenate([*(sound.hear(data[a * sample_bytes : b * sample_bytes]) for a, b in cuts), sound.end()])


def spoken(sound: SpokenSound, samples: NDArray[np.float32], sizes: list[int]) -> bytes:
    return b"".join([*(sound.speak(samples[a:b]) for a, b in edges(len(samples), sizes)), sound.end()])


def read(data: bytes, audio_format: types_pb2.AudioFormat) -> NDArray[np.float32]:
    """A reply as the listener's SDK reads it."""
    encoding = next(it for it in client.Encoding if it.wire == audio_format.encoding)
    return encoding.decode(data)


@given(audio_format=formats, count=st.integers(0, LONGEST), sizes=packets)
def test_what_is_heard_does_not_depend_on_packets(
    audio_format: types_pb2.AudioFormat, count: int, sizes: list[int]
) -> None:
    data, size = stored(audio_format, count), SAMPLE_BYTES[audio_format.encoding]
    whole = heard(HeardSound(audio_format), data, [LONGEST], size)
    cut = heard(HeardSound(audio_format), data, sizes, size)
    assert cut.dtype == np.float32
    assert cut.tobytes() == whole.tobytes()


@given(audio_format=formats, count=st.integers(0, LONGEST), sizes=packets)
def test_what_is_spoken_does_not_depend_on_packets(
    audio_format: types_pb2.AudioFormat, count: int, sizes: list[int]
) -> None:
    samples = noise(count)
    assert spoken(SpokenSound(audio_format), samples, sizes) == spoken(SpokenSound(audio_format), samples, [LONGEST])


@pytest.mark.parametrize("audio_format", [it for it in FORMATS if it.encoding in (F32, MULAW)], ids=str)
def test_single_samples_are_packets_too(audio_format: types_pb2.AudioFormat) -> None:
    data, size = stored(audio_format, 1500), SAMPLE_BYTES[audio_format.encoding]
    whole, single = (heard(HeardSound(audio_format), data, [step], size) for step in (1500, 1))
    assert single.tobytes() == whole.tobytes()
    samples = noise(1500)
    assert spoken(SpokenSound(audio_format), samples, [1]) == spoken(SpokenSound(audio_format), samples, [1500])


@given(audio_format=formats, count=st.integers(0, LONGEST), sizes=packets)
def test_a_turn_has_exactly_its_length(audio_format: types_pb2.AudioFormat, count: int, sizes: list[int]) -> None:
    rate, size = audio_format.sample_rate_hz, SAMPLE_BYTES[audio_format.encoding]
    sound, data = HeardSound(audio_format), stored(audio_format, count)
    complete = 0
    for a, b in edges(count, sizes):
        complete += len(sound.hear(data[a * size : b * size]))
        assert sound.heard_sample_count == b
        assert complete <= b * 16000 / rate
    assert complete + len(sound.end()) == round(count * 16000 / rate)


@every_format
@pytest.mark.parametrize("frame_count", [1, 2, 25])
def test_a_reply_has_exactly_its_length(audio_format: types_pb2.AudioFormat, frame_count: int) -> None:
    data = spoken(SpokenSound(audio_format), noise(frame_count * 1920), [1920])
    expected = round(frame_count * 1920 * audio_format.sample_rate_hz / 24000)
    assert len(data) == expected * SAMPLE_BYTES[audio_format.encoding]


@given(audio_format=formats, before=st.integers(0, 2000), count=st.integers(0, 2000))
def test_after_the_end_all_is_as_new(audio_format: types_pb2.AudioFormat, before: int, count: int) -> None:
    size = SAMPLE_BYTES[audio_format.encoding]
    used = HeardSound(audio_format)
    heard(used, stored(audio_format, before, seed=1), [700], size)
    assert used.heard_sample_count == 0
    data = stored(audio_format, count, seed=2)
    assert heard(used, data, [700], size).tobytes() == heard(HeardSound(audio_format), data, [700], size).tobytes()
    speaking = SpokenSound(audio_format)
    spoken(speaking, noise(before, seed=1), [700])
    samples = noise(count, seed=2)
    assert spoken(speaking, samples, [700]) == spoken(SpokenSound(audio_format), samples, [700])


@given(count=st.integers(0, 500), encoding=st.sampled_from([S16, F32]))
def test_at_the_models_own_rates_nothing_is_resampled(count: int, encoding: types_pb2.AudioEncoding) -> None:
    own_in = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=16000)
    data = stored(own_in, count)
    sound = HeardSound(own_in)
    assert sound.hear(data).tobytes() == decode_pcm(data, encoding, field="audio").tobytes()
    assert sound.end().tobytes() == b""
    own_out = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=24000)
    samples = noise(count)
    speaking = SpokenSound(own_out)
    assert speaking.speak(samples) == samples.astype("<f4").tobytes()
    assert speaking.end() == b""


@pytest.mark.parametrize(("rate", "held_ms"), [(8000, 30.0), (16000, 0.0), (24000, 10.0), (48000, 12.5)])
def test_what_is_heard_is_held_back_by_no_more_than_is_documented(rate: int, held_ms: float) -> None:
    sound = HeardSound(types_pb2.AudioFormat(encoding=MULAW if rate == 8000 else S16, sample_rate_hz=rate))
    size, complete = 1 if rate == 8000 else 2, 0
    for packet in range(1, 50):
        complete += len(sound.hear(bytes(rate // 50 * size)))
        assert 20 * packet - complete / 16 <= held_ms + 1 / 16 or complete == 0


@pytest.mark.parametrize(("rate", "held_ms"), [(8000, 25.0), (16000, 10.0), (24000, 0.0), (48000, 10.0)])
def test_what_is_spoken_is_held_back_by_no_more_than_is_documented(rate: int, held_ms: float) -> None:
    sound = SpokenSound(types_pb2.AudioFormat(encoding=S16, sample_rate_hz=rate))
    complete = 0
    for frame in range(1, 13):
        complete += len(sound.speak(noise(1920))) // 2
        assert 80 * frame - complete * 1000 / rate <= held_ms + 1000 / rate


def middle(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half of the sound, away from its ends, whose edges are sound of all pitches."""
    return samples[len(samples) // 4 : -len(samples) // 4]


def spectrum(samples: NDArray[np.float32], rate_hz: int) -> tuple[float, float, float]:
    """Pitch in Hz and level of the strongest tone, and the level of all else, in the middle of a second of sound.

    The middle half has whole periods of all tones here, so that none leaks into other bins.
    """
    half = middle(samples).astype(np.float64)
    levels = np.abs(np.fft.rfft(half)) * 2 / len(half)
    strongest = int(levels.argmax())
    rest = float(np.sqrt((np.delete(levels, strongest) ** 2).sum()))
    return strongest * rate_hz / len(half), float(levels[strongest]), rest


@every_format
@pytest.mark.parametrize("pitch_hz", [300.0, 1000.0, 3400.0])
def test_a_tone_survives(audio_format: types_pb2.AudioFormat, pitch_hz: float) -> None:
    rate, is_pcm = audio_format.sample_rate_hz, audio_format.encoding in (S16, F32)
    sent = spoken(SpokenSound(audio_format), tone(24000, pitch_hz=pitch_hz), [1920])
    for samples, samples_rate_hz in (
        (read(sent, audio_format), rate),
        (heard(HeardSound(audio_format), sent, [rate // 50], SAMPLE_BYTES[audio_format.encoding]), 16000),
    ):
        pitch, level, rest = spectrum(samples, samples_rate_hz)
        assert pitch == pitch_hz
        assert abs(level - 0.5) < (0.001 if is_pcm else 0.005)
        assert rest < (0.0005 if is_pcm else 0.5 / 10 ** (35 / 20))  # what 16 bits cost, and G.711's 35 dB


@pytest.mark.parametrize("rate", [8000, 16000])
def test_what_the_listeners_rate_cannot_carry_is_left_out(rate: int) -> None:
    audio_format = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate)
    samples = tone(24000, pitch_hz=rate / 2 + 300)
    left = read(spoken(SpokenSound(audio_format), samples, [1920]), audio_format)
    assert np.abs(middle(left)).max() < 1e-5


@pytest.mark.parametrize("encoding", [MULAW, ALAW])
def test_g711_reads_and_writes_each_value_of_the_standard(encoding: types_pb2.AudioEncoding) -> None:
    telephone = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=8000)
    values = read(bytes(range(256)), telephone) * 32767
    # ITU-T G.711: silence, the loudest values, and the least above silence, on a scale of 16 bits.
    landmarks = (
        {0xFF: 0, 0x7F: 0, 0x80: 32124, 0x00: -32124, 0xFE: 8, 0x7E: -8}
        if encoding == MULAW
        else {0xD5: 8, 0x55: -8, 0xAA: 32256, 0x2A: -32256, 0xD4: 24, 0x54: -24}
    )
    assert {byte: round(float(values[byte])) for byte in landmarks} == landmarks
    again = np.frombuffer(spoken_at_8000(telephone, values / 32767), np.uint8)
    expected = np.arange(256)
    if encoding == MULAW:
        expected[0x7F] = 0xFF  # both are silence
    assert np.array_equal(again, expected)


def spoken_at_8000(telephone: types_pb2.AudioFormat, values: NDArray[np.float32]) -> bytes:
    """The bytes that steady sound of each value ends in, each by itself, as resampling needs."""
    steady = [spoken(SpokenSound(telephone), np.full(960, value, np.float32), [960]) for value in values]
    return bytes(data[len(data) // 2] for data in steady)


@given(count=st.integers(1, 400), encoding=st.sampled_from(list(client.Encoding)), seed=st.integers(0, 9))
def test_what_the_sdk_sends_is_what_is_heard(count: int, encoding: client.Encoding, seed: int) -> None:
    rate = 8000 if encoding.sample_bytes == 1 else 16000
    samples = noise(count, seed)
    sent = encoding.encode(samples)
    assert len(sent) == count * encoding.sample_bytes
    as_read = encoding.decode(sent)
    if rate == 16000:
        assert np.abs(HeardSound(encoding.wire_format(rate)).hear(sent) - samples).max() <= 1 / 32768
        assert np.abs(as_read - samples).max() <= 2 / 32768
    else:
        sound = HeardSound(encoding.wire_format(rate))
        as_floats = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate)
        floats = (as_read * np.float32(32767) / np.float32(32768)).astype("<f4").tobytes()
        same = heard(HeardSound(as_floats), floats, [count], 4)
        assert np.abs(heard(sound, sent, [count], 1) - same).max() < 1e-6
        assert np.all(np.abs(as_read - samples) <= np.abs(samples) / 16 + 0.001)


@every_format
def test_no_sound_is_no_sound(audio_format: types_pb2.AudioFormat) -> None:
    sound, speaking = HeardSound(audio_format), SpokenSound(audio_format)
    assert [len(sound.hear(b"")), len(sound.end()), len(sound.end())] == [0, 0, 0]
    assert [speaking.speak(noise(0)), speaking.end(), speaking.end()] == [b"", b"", b""]


@every_format
def test_what_is_louder_than_full_scale_is_clipped_not_turned_over(audio_format: types_pb2.AudioFormat) -> None:
    samples = read(spoken(SpokenSound(audio_format), tone(24000, pitch_hz=50, level=2.0), [1920]), audio_format)
    wanted = middle(tone(audio_format.sample_rate_hz, pitch_hz=50, level=2.0))
    is_loud = np.abs(wanted) > 0.5
    assert np.array_equal(np.sign(middle(samples))[is_loud], np.sign(wanted)[is_loud])
    assert (2 if audio_format.encoding == F32 else 1) - 0.02 < np.abs(middle(samples)).max()
    assert np.abs(samples).max() < (2.5 if audio_format.encoding == F32 else 1.001)


@pytest.mark.parametrize(("encoding", "size"), [(S16, 1), (S16, 321), (F32, 2), (F32, 643)], ids=str)
def test_a_part_of_a_sample_is_refused_and_changes_nothing(encoding: types_pb2.AudioEncoding, size: int) -> None:
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=48000)
    sound = HeardSound(audio_format)
    first, second = stored(audio_format, 900), stored(audio_format, 700, seed=1)
    parts = [sound.hear(first)]
    with pytest.raises(InvalidArgument, match=rf"whole samples .* got {size} bytes") as caught:
        sound.hear(bytes(size))
    assert (caught.value.reason, caught.value.field) == ("PARTIAL_SAMPLE", "audio.data")
    assert sound.heard_sample_count == 900
    parts += [sound.hear(second), sound.end()]
    whole = heard(HeardSound(audio_format), first + second, [1600], SAMPLE_BYTES[encoding])
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("rate", RATES_HZ)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused_coming_in(rate: int, value: float) -> None:
    sound = HeardSound(types_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate))
    with pytest.raises(InvalidArgument, match="finite") as caught:
        sound.hear(np.array([0, value], "<f4").tobytes())
    assert (caught.value.reason, caught.value.field) == ("NON_FINITE", "audio.data")
    assert sound.heard_sample_count == 0


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
def test_floats_that_only_resampling_would_make_infinite_are_refused(rate: int) -> None:
    sound = HeardSound(types_pb2.AudioFormat(encoding=F32, sample_rate_hz=rate))
    loud = (np.sign(noise(4000)) * np.finfo(np.float32).max).astype("<f4").tobytes()
    with pytest.raises(InvalidArgument, match="too large") as caught:
        sound.hear(loud)
    assert caught.value.field == "audio.data"


@every_format
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_spoken(audio_format: types_pb2.AudioFormat, value: float) -> None:
    sound, samples = SpokenSound(audio_format), noise(1920)
    samples[960] = value
    with pytest.raises(Internal) as caught:
        spoken(sound, samples, [1920])
    assert caught.value.reason == "NON_FINITE"


@every_format
def test_formats_of_sessions_are_taken(audio_format: types_pb2.AudioFormat) -> None:
    check_session_format(audio_format, "open.input_format")


@pytest.mark.parametrize(
    ("encoding", "rate", "wrong", "expected"),
    [
        (types_pb2.AUDIO_ENCODING_UNSPECIFIED, 8000, "encoding", "PCM_S16LE, PCM_F32LE, MULAW or ALAW, got 0"),
        (9, 8000, "encoding", "PCM_S16LE, PCM_F32LE, MULAW or ALAW, got 9"),
        (S16, 0, "sample_rate_hz", "8000, 16000, 24000 or 48000, got 0"),
        (F32, 44100, "sample_rate_hz", "8000, 16000, 24000 or 48000, got 44100"),
        (MULAW, 16000, "sample_rate_hz", "8000 in G.711, got 16000"),
        (ALAW, 0, "sample_rate_hz", "8000 in G.711, got 0"),
    ],
)
def test_other_formats_are_refused_in_a_sentence(
    encoding: types_pb2.AudioEncoding, rate: int, wrong: str, expected: str
) -> None:
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    with pytest.raises(InvalidArgument) as caught:
        check_session_format(audio_format, "open.output_format")
    assert caught.value.message == f"open.output_format.{wrong} must be {expected}"
    assert caught.value.field == f"open.output_format.{wrong}"
    assert caught.value.reason == {"encoding": "WRONG_ENCODING", "sample_rate_hz": "WRONG_SAMPLE_RATE"}[wrong]
