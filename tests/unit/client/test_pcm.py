"""Sound in every encoding survives the way to the mesh and back."""

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.pcm import Encoding

G711 = (Encoding.MULAW, Encoding.ALAW)
encodings = st.sampled_from(list(Encoding))
integers = hnp.arrays(np.int16, st.integers(0, 50))


@given(encoding=encodings, samples=integers, cut=st.integers(0, 50))
def test_sound_may_be_cut_between_any_samples(encoding, samples, cut):
    data = encoding.encode(samples)
    assert len(data) == len(samples) * encoding.sample_bytes
    assert encoding.encode(samples[:cut]) + encoding.encode(samples[cut:]) == data
    at = min(cut, len(samples)) * encoding.sample_bytes
    parts = np.concatenate([encoding.decode(data[:at]), encoding.decode(data[at:])])
    assert parts.dtype == np.float32
    assert parts.tobytes() == encoding.decode(data).tobytes()


@given(encoding=encodings, samples=integers)
def test_floats_and_the_integers_they_stand_for_are_the_same_bytes(encoding, samples):
    assert encoding.encode(samples / np.float32(32768)) == encoding.encode(samples)


@given(encoding=st.sampled_from(G711), data=st.binary(max_size=50))
def test_what_a_telephone_says_comes_back_as_it_was(encoding, data):
    integers = np.round(encoding.decode(data) * 32767).astype(np.int16)
    silence = bytes([0x7F]), bytes([0xFF])  # µ-law has two bytes for it
    assert encoding.encode(integers) == (data.replace(*silence) if encoding is Encoding.MULAW else data)


@given(encoding=st.sampled_from(G711), samples=integers)
def test_telephones_keep_each_sample_within_a_sixteenth(encoding, samples):
    kept = encoding.decode(encoding.encode(samples)) * 32767
    assert np.all(np.abs(kept - samples) <= np.abs(samples.astype(int)) / 16 + 16)


@pytest.mark.parametrize("encoding", [it for it in Encoding if it is not Encoding.F32])
def test_what_is_too_loud_is_clipped_not_turned_over(encoding):
    assert encoding.encode(np.float32([5, -5])) == encoding.encode(np.int16([32767, -32768]))
    loudest, lowest = encoding.decode(encoding.encode(np.float32([5, -5])))
    assert 0.98 < loudest <= 1
    assert -1 <= lowest < -0.98


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros((2, 2), np.float32), "mono"),
        (np.zeros(2, np.int32), "float32, float64 or int16; got int32"),
        (np.float32([0, np.nan]), "finite"),
        (np.float64([np.inf]), "finite"),
    ],
)
def test_what_is_no_sound_is_refused(encoding, samples, said):
    with pytest.raises(ValueError, match=said):
        encoding.encode(samples)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_each_encoding_has_its_name_on_the_wire_and_its_rates(encoding):
    is_telephone = encoding in G711
    assert encoding.rates_hz == ((8000,) if is_telephone else (8000, 16000, 24000, 48000))
    name = f"AUDIO_ENCODING_{'' if is_telephone else 'PCM_'}{encoding.name}{'' if is_telephone else 'LE'}"
    expected = types_pb2.AudioFormat(encoding=types_pb2.AudioEncoding.Value(name), sample_rate_hz=8000)
    assert encoding.wire_format(8000) == expected
