"""The streaming decoder against transformers' decoder, which sees all frames at once."""

import pytest
import torch

from services.bench.plain_codec import plain_codec
from services.codec.mimi import Mimi
from services.codec.model import Codec
from services.codec.streaming_decoder import DecodeState, StreamingDecoder, exact_float32
from tests.unit.codec.mimi_shapes import SHAPES

TOLERANCE = 1e-4
FRAMES = 24


def decode_at_once(mimi: Mimi, codes: torch.Tensor) -> torch.Tensor:
    """transformers' samples [samples] of codes [frames, codebooks]."""
    with exact_float32():
        return plain_codec(mimi).decode(codes.T[None]).audio_values[0, 0]


def decode_streaming(decoder: StreamingDecoder, codes: torch.Tensor, slots: int = 1) -> torch.Tensor:
    """Our samples [slots, samples] of codes [frames, codebooks], given to every slot."""
    state, everyone = decoder.new_state(slots), torch.ones(slots, dtype=torch.bool)
    with exact_float32():
        return torch.cat([decoder.decode_step(state, frame.expand(slots, -1), everyone) for frame in codes], dim=1)


def tensors(state: DecodeState) -> list[torch.Tensor]:
    """All that a state remembers, slots first; the cache without its dump column."""
    cache = [tensor[..., :-1, :].transpose(0, 1) for tensor in (state.cache.keys, state.cache.values)]
    return [state.positions, *cache, state.edges]


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_streaming_equals_one_shot_for_every_shape(make_mimi, random_codes, settings) -> None:
    mimi = make_mimi(1, **settings)
    codec = Codec(mimi, mimi.config.num_quantizers)
    codes = random_codes(codec, FRAMES)
    expected = decode_at_once(mimi, codes)
    assert expected.numel() == FRAMES * codec.samples_per_frame
    streamed = decode_streaming(StreamingDecoder(mimi, codec.codebook_count), codes, slots=2)
    torch.testing.assert_close(streamed, expected.expand(2, -1), atol=TOLERANCE, rtol=0)


def test_streaming_equals_one_shot_when_the_window_is_full(golden_codec, random_codes) -> None:
    frames = 160
    assert frames * 2 > golden_codec.mimi.config.sliding_window
    codes = random_codes(golden_codec, frames)
    expected = decode_at_once(golden_codec.mimi, codes)
    streamed = decode_streaming(StreamingDecoder(golden_codec.mimi, golden_codec.codebook_count), codes)
    # Without a window these weights would differ by 4e-5: the tolerance is below that.
    torch.testing.assert_close(streamed[0], expected, atol=2e-6, rtol=0)


def test_the_window_decides_what_is_heard_beyond_it(make_mimi, random_codes) -> None:
    windowed, endless = make_mimi(1), make_mimi(1, sliding_window=1000)
    codec = Codec(windowed, 4)
    codes = random_codes(codec, FRAMES)
    heard = decode_streaming(StreamingDecoder(windowed, 4), codes)[0].view(FRAMES, -1)
    unbounded = decode_streaming(StreamingDecoder(endless, 4), codes)[0].view(FRAMES, -1)
    differing = (heard - unbounded).abs().amax(dim=1) > TOLERANCE
    # 9 positions are all that a position may see, and a frame has 2: the fifth frame's second is the tenth.
    assert differing.tolist() == [False] * 4 + [True] * (FRAMES - 4)


def test_fewer_codebooks_than_mimi_has_are_the_first_ones(make_mimi, random_codes) -> None:
    mimi = make_mimi(num_quantizers=6)
    codec = Codec(mimi, 3)
    codes = random_codes(codec, FRAMES)
    streamed = decode_streaming(StreamingDecoder(mimi, 3), codes)[0]
    torch.testing.assert_close(streamed, decode_at_once(mimi, codes), atol=TOLERANCE, rtol=0)


def test_unused_codewords_are_divided_by_a_floor_as_in_transformers(make_mimi, random_codes) -> None:
    mimi = make_mimi()
    for name, tensor in mimi.state_dict().items():
        if name.endswith("cluster_usage"):
            tensor[::3] = 0
        if name.endswith("embed_sum"):
            tensor[::3] *= 1e-5
    codes = random_codes(Codec(mimi, 4), FRAMES)
    streamed = decode_streaming(StreamingDecoder(mimi, 4), codes)[0]
    torch.testing.assert_close(streamed, decode_at_once(mimi, codes), atol=TOLERANCE, rtol=0)


def test_a_slot_that_sits_out_keeps_its_state_to_the_bit(make_mimi, random_codes) -> None:
    decoder = StreamingDecoder(make_mimi(), 4)
    state = decoder.new_state(3)
    codes = random_codes(Codec(make_mimi(), 4), 40).view(-1, 1, 4).expand(-1, 3, -1)
    for index, frame in enumerate(codes):
        before = [tensor.clone() for tensor in tensors(state)]
        executed = torch.tensor([index % 2 == 0, index % 3 == 0, False])
        with exact_float32():
            decoder.decode_step(state, frame, executed)
        for old, new in zip(before, tensors(state), strict=True):
            assert torch.equal(old[~executed], new[~executed])
    assert state.positions.tolist() == [40, 28, 0]


def test_reset_makes_only_the_chosen_slots_new(make_mimi, random_codes) -> None:
    decoder = StreamingDecoder(make_mimi(pad_mode="replicate"), 4)
    codes = random_codes(Codec(make_mimi(), 4), FRAMES)
    state, everyone = decoder.new_state(3), torch.ones(3, dtype=torch.bool)
    with exact_float32():
        for frame in codes:
            decoder.decode_step(state, frame.expand(3, -1), everyone)
    before = [tensor.clone() for tensor in tensors(state)]
    state.reset(torch.tensor([False, True, False]))
    for old, new, fresh in zip(before, tensors(state), tensors(decoder.new_state(3)), strict=True):
        assert torch.equal(new[1], fresh[1])
        assert torch.equal(new[[0, 2]], old[[0, 2]])


def test_the_step_allocates_no_state(make_mimi, random_codes) -> None:
    decoder = StreamingDecoder(make_mimi(), 4)
    state = decoder.new_state(2)
    addresses = [tensor.data_ptr() for tensor in (state.positions, state.cache.keys, state.cache.values, state.edges)]
    with exact_float32():
        for frame in random_codes(Codec(make_mimi(), 4), 3):
            decoder.decode_step(state, frame.expand(2, -1), torch.ones(2, dtype=torch.bool))
    assert addresses == [
        tensor.data_ptr() for tensor in (state.positions, state.cache.keys, state.cache.values, state.edges)
    ]


def test_the_step_reads_no_tensor_value_on_the_host(make_mimi) -> None:
    decoder = StreamingDecoder(make_mimi(num_key_value_heads=2, pad_mode="replicate"), 4).to("meta")
    state = decoder.new_state(2)
    # A meta tensor has no values: reading one raises.
    samples = decoder.decode_step(
        state, torch.zeros(2, 4, dtype=torch.int64, device="meta"), torch.ones(2, dtype=torch.bool, device="meta")
    )
    assert samples.shape == (2, decoder.samples_per_frame)
