"""Sound survives the wire, and what is no sound is refused."""

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.runtime.audio import check_duration, check_format, decode_pcm, encode_pcm
from services.runtime.errors import Internal, InvalidArgument

S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
sound = hnp.arrays(np.float32, st.integers(0, 50), elements=finite)


@given(sound)
def test_floats_come_back_bit_for_bit(samples: NDArray[np.float32]) -> None:
    assert decode_pcm(encode_pcm(samples, F32), F32, field="audio").tobytes() == samples.tobytes()


@given(hnp.arrays(np.int16, st.integers(0, 50)))
def test_integers_come_back_within_one_step(samples: NDArray[np.int16]) -> None:
    floats = decode_pcm(samples.astype("<i2").tobytes(), S16, field="audio")
    back = np.frombuffer(encode_pcm(floats, S16), "<i2")
    assert floats.dtype == np.float32
    assert np.all(np.abs(floats) <= 1)
    assert np.all(np.abs(back.astype(int) - samples) <= 1)


@given(sound)
def test_integers_are_clipped_at_full_scale(samples: NDArray[np.float32]) -> None:
    back = np.frombuffer(encode_pcm(samples, S16), "<i2").astype(np.float64) / 32767
    assert np.all(np.abs(back - np.clip(samples.astype(np.float64), -1, 1)) <= 0.5 / 32767 + 1e-7)


@given(hnp.arrays(np.int16, st.integers(1, 50)), st.data())
def test_sound_may_be_cut_between_any_samples(samples: NDArray[np.int16], data: st.DataObject) -> None:
    raw = samples.astype("<i2").tobytes()
    cut = 2 * data.draw(st.integers(0, len(samples)))
    parts = [decode_pcm(part, S16, field="audio") for part in (raw[:cut], raw[cut:])]
    assert np.array_equal(np.concatenate(parts), decode_pcm(raw, S16, field="audio"))


def test_full_scale() -> None:
    assert decode_pcm(b"\x00\x80\xff\x7f", S16, field="audio").tolist() == [-1.0, 32767 / 32768]
    assert encode_pcm(np.array([1, -1, 2, -2, 0], np.float32), S16) == b"\xff\x7f\x01\x80\xff\x7f\x01\x80\x00\x00"


@pytest.mark.parametrize(("encoding", "size"), [(S16, 1), (S16, 3), (F32, 2), (F32, 7)])
def test_a_part_of_a_sample_is_refused(encoding: types_pb2.AudioEncoding, size: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"whole samples .* got {size} bytes") as caught:
        decode_pcm(bytes(size), encoding, field="part.audio")
    assert caught.value.field == "part.audio"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_the_callers_fault_coming_in_and_ours_going_out(value: float) -> None:
    samples = np.array([0, value], np.float32)
    with pytest.raises(InvalidArgument, match="finite"):
        decode_pcm(samples.astype("<f4").tobytes(), F32, field="audio")
    for encoding in (S16, F32):
        with pytest.raises(Internal) as caught:
            encode_pcm(samples, encoding)
        assert caught.value.reason == "NON_FINITE"


@pytest.mark.parametrize(
    ("encoding", "rate", "field"),
    [
        (types_pb2.AUDIO_ENCODING_UNSPECIFIED, 24000, "audio_format.encoding"),
        (9, 24000, "audio_format.encoding"),
        # Telephones' G.711 comes only as far as the orchestrator.
        (types_pb2.AUDIO_ENCODING_MULAW, 8000, "audio_format.encoding"),
        (types_pb2.AUDIO_ENCODING_ALAW, 24000, "audio_format.encoding"),
        (S16, 16000, "audio_format.sample_rate_hz"),
        (F32, 0, "audio_format.sample_rate_hz"),
    ],
)
def test_an_unknown_encoding_or_another_rate_is_refused(
    encoding: types_pb2.AudioEncoding, rate: int, field: str
) -> None:
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    with pytest.raises(InvalidArgument, match="must be") as caught:
        check_format(audio_format, sample_rate_hz=24000, field="audio_format")
    assert caught.value.field == field


@pytest.mark.parametrize("encoding", [S16, F32])
def test_a_known_format_is_taken(encoding: types_pb2.AudioEncoding) -> None:
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=24000)
    assert check_format(audio_format, sample_rate_hz=24000, field="audio_format") == encoding


@given(st.integers(0, 800_000))
def test_both_limits_of_a_duration_are_allowed(sample_count: int) -> None:
    limits = {"sample_rate_hz": 24000, "minimum_seconds": 0.02, "maximum_seconds": 30.0}
    if 480 <= sample_count <= 720_000:
        check_duration(sample_count, **limits, field="audio")
    else:
        with pytest.raises(InvalidArgument, match=r"0\.02 to 30 seconds") as caught:
            check_duration(sample_count, **limits, field="audio")
        assert caught.value.reason == ("TOO_SHORT" if sample_count < 480 else "TOO_LONG")


@pytest.mark.parametrize("sample_count", [480, 720_000])
def test_a_duration_at_a_limit_is_taken(sample_count: int) -> None:
    check_duration(sample_count, sample_rate_hz=24000, minimum_seconds=0.02, maximum_seconds=30, field="audio")
