"""The compiled step of a CPU: equal to transformers' decoder and to torch's operations, for every shape."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.bench.plain_codec import plain_codec
from services.codec.compiled_layers import _elu
from services.codec.compiled_weights import compiled_bytes, compiled_weights
from services.codec.mimi import Mimi, build_mimi
from services.codec.model import Codec
from services.codec.slot_decoder import CompiledSlots
from services.codec.streaming_decoder import StreamingDecoder, exact_float32
from services.inference.cpu.gelu import gelu
from services.inference.cpu.vectors import LANES
from tests.unit.codec.mimi_shapes import SHAPES

FRAMES = 24

every_shape = pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)


def heard(decoder: CompiledSlots, slot: int, codes: torch.Tensor) -> NDArray[np.float32]:
    """The samples of codes [frames, codebooks]."""
    return np.concatenate([decoder.step({slot: [frame]})[slot][0] for frame in codes.tolist()])


def decode_exactly(mimi: Mimi, codes: torch.Tensor) -> NDArray[np.float64]:
    """transformers' samples in twice the precision."""
    double = plain_codec(mimi).double()
    with exact_float32():
        samples: NDArray[np.float64] = double.decode(codes.T[None]).audio_values[0, 0].numpy()
    return samples


@every_shape
def test_compiled_slots_equal_one_shot(make_mimi, random_codes, settings) -> None:
    mimi = make_mimi(1, **settings)
    codec = Codec(mimi, mimi.config.num_quantizers)
    codes = random_codes(codec, FRAMES)
    decoder = codec.slot_decoder(3)
    assert isinstance(decoder, CompiledSlots)
    # The samples are of about 3.
    np.testing.assert_allclose(heard(decoder, 1, codes), decode_exactly(mimi, codes), atol=1e-5, rtol=0)


@every_shape
@pytest.mark.parametrize("together", [2, 3, 8, FRAMES])
def test_frames_that_are_decoded_together_have_the_bits_of_one_after_the_other(
    make_mimi, random_codes, settings, together: int
) -> None:
    codec = Codec(make_mimi(1, **settings), 4)
    codes = random_codes(codec, FRAMES)
    decoder = codec.slot_decoder(2)
    frames = codes.tolist()
    sound = [decoder.step({1: frames[start : start + together]})[1] for start in range(0, FRAMES, together)]
    assert (
        np.concatenate([samples for part in sound for samples in part]).tobytes() == heard(decoder, 0, codes).tobytes()
    )


@every_shape
def test_compiled_slots_equal_the_operations_of_torch(make_mimi, random_codes, settings) -> None:
    mimi = make_mimi(2, **settings)
    codebooks = mimi.config.num_quantizers - 1
    decoder, everyone = StreamingDecoder(mimi, codebooks), torch.ones(2, dtype=torch.bool)
    compiled, state = CompiledSlots(decoder, 2), decoder.new_state(2)
    replies = [random_codes(Codec(mimi, codebooks), FRAMES, seed) for seed in range(2)]
    for frames in zip(*replies, strict=True):
        with exact_float32():
            expected = decoder.decode_step(state, torch.stack(frames), everyone)
        given = compiled.step({slot: [frame.tolist()] for slot, frame in enumerate(frames)})
        np.testing.assert_allclose(np.stack([*given[0], *given[1]]), expected.numpy(), atol=1e-5, rtol=0)


def test_compiled_slots_equal_one_shot_when_the_window_is_full(golden_codec, random_codes) -> None:
    codes = random_codes(golden_codec, 160)
    assert 2 * len(codes) > golden_codec.mimi.config.sliding_window
    samples = np.concatenate(golden_codec.slot_decoder(1).step({0: codes.tolist()})[0])
    # Without a window these weights would differ by 4e-5: the tolerance is below that.
    np.testing.assert_allclose(samples, decode_exactly(golden_codec.mimi, codes), atol=2e-6, rtol=0)


def test_a_slot_that_sits_out_keeps_its_state_to_the_bit(make_mimi, random_codes) -> None:
    mimi = make_mimi(pad_mode="replicate")
    decoder, codes = CompiledSlots(StreamingDecoder(mimi, 4), 3), random_codes(Codec(mimi, 4), 40).tolist()

    def remembered(slot: int) -> list[bytes]:
        state = decoder._state
        cache = state.cache.entries[:, slot, :, :-1]
        return [tensor.numpy().tobytes() for tensor in (state.positions[slot], cache, state.edges[slot])]

    for index, frame in enumerate(codes):
        executed = [slot for slot in range(3) if (index % 2 == 0, index % 3 == 0, False)[slot]]
        before = [remembered(slot) for slot in range(3)]
        decoder.step({slot: [frame] for slot in executed})
        assert [remembered(slot) != before[slot] for slot in range(3)] == [slot in executed for slot in range(3)]
    assert decoder._state.positions.tolist() == [40, 28, 0]


@every_shape
def test_what_is_laid_out_is_known_from_the_shapes(make_mimi, settings) -> None:
    mimi = make_mimi(**settings)
    planned = StreamingDecoder(build_mimi(mimi.config, torch.device("meta")), 2)
    weights = compiled_weights(StreamingDecoder(mimi, 2))
    assert compiled_bytes(planned) == weights.transformer.nbytes + weights.kernels.nbytes


def reach(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Numbers in whole vectors."""
    return np.pad(numbers, (0, -len(numbers) % LANES)).astype(np.float32)


def test_gelu_is_the_exact_one() -> None:
    x = reach(np.concatenate((np.linspace(-12, 12, 100_001), [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])))
    y = x.copy()
    gelu(y, 0, len(y))
    exact = np.array([number * math.erfc(-number / math.sqrt(2)) / 2 for number in x.astype(np.float64)])
    assert np.all(np.abs(y - exact) <= 5e-7 * np.maximum(1, np.abs(exact)))


def test_elu_is_that_of_torch() -> None:
    x = reach(np.concatenate((np.linspace(-100, 20, 100_001), [np.nan, np.inf, -np.inf, 0.0, 1e-30, -1e-30])))
    y = np.empty_like(x)
    _elu(x, 0, len(x), y, 0)
    np.testing.assert_allclose(y, torch.nn.functional.elu(torch.from_numpy(x)).numpy(), atol=2e-7, rtol=0)


def test_what_is_no_number_is_heard(make_mimi: Callable[..., Mimi], random_codes) -> None:
    mimi = make_mimi()
    codes = random_codes(Codec(mimi, 4), 2)
    mimi.state_dict()["decoder.layers.0.conv.bias"].fill_(torch.nan)
    assert np.isnan(heard(CompiledSlots(StreamingDecoder(mimi, 4), 1), 0, codes)).all()
