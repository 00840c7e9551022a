"""Slots that come and go: each is heard as if it were alone."""

import random

import numpy as np
import pytest
import torch

from services.codec.model import Codec


def alone(codec: Codec, frames: torch.Tensor) -> list[bytes]:
    """The sound of each frame of a reply that has a decoder to itself."""
    decoder = codec.slot_decoder(1)
    return [decoder.step({0: [frame]})[0][0].tobytes() for frame in frames.tolist()]


@pytest.mark.parametrize("slot_count", [2, 3, 5, 8, 11])
def test_slots_that_join_and_leave_at_random_equal_their_solo_runs(make_mimi, random_codes, slot_count: int) -> None:
    codec = Codec(make_mimi(num_key_value_heads=2, pad_mode="replicate"), 4)
    decoder, chance = codec.slot_decoder(slot_count), random.Random(slot_count)
    live: dict[int, tuple[torch.Tensor, list[bytes]]] = {}
    ended: list[tuple[torch.Tensor, list[bytes]]] = []
    for round_index in range(60):
        for slot in range(slot_count):
            if slot not in live and chance.random() < 0.4:
                decoder.reset(slot)
                live[slot] = random_codes(codec, chance.randint(1, 16), seed=round_index * 100 + slot), []
        due = [slot for slot in live if chance.random() < 0.7]
        chance.shuffle(due)
        following = {slot: live[slot][0][len(live[slot][1]) :][: chance.randint(1, 5)].tolist() for slot in due}
        for slot, sound in decoder.step(following).items():
            codes, heard = live[slot]
            assert len(sound) == len(following[slot])
            heard += [samples.tobytes() for samples in sound]
            if len(heard) == len(codes):
                ended.append(live.pop(slot))
    assert len(ended) > slot_count
    for codes, heard in [*ended, *live.values()]:
        assert heard == alone(codec, codes[: len(heard)])


def test_golden_weights_too(golden_codec, random_codes) -> None:
    decoder = golden_codec.slot_decoder(3)
    replies = [random_codes(golden_codec, 20, seed) for seed in range(3)]
    heard: list[list[bytes]] = [[], [], []]
    for index in range(20 + 2):
        # Each slot starts one round after the one before it.
        due = {slot: [replies[slot][index - slot].tolist()] for slot in range(3) if 0 <= index - slot < 20}
        for slot, sound in decoder.step(due).items():
            heard[slot].append(sound[0].tobytes())
    assert heard == [alone(golden_codec, reply) for reply in replies]


def test_reset_forgets_the_last_reply(golden_codec, random_codes) -> None:
    decoder = golden_codec.slot_decoder(2)
    first, second = random_codes(golden_codec, 5, seed=1), random_codes(golden_codec, 5, seed=2)
    for frame in first.tolist():
        decoder.step({0: [frame], 1: [frame]})
    decoder.reset(1)
    assert [sound.tobytes() for sound in decoder.step({1: second.tolist()})[1]] == alone(golden_codec, second)
    resumed = [sound.tobytes() for sound in decoder.step({0: second.tolist()})[0]]
    assert resumed == alone(golden_codec, torch.cat((first, second)))[5:]


def test_samples_belong_to_the_caller(golden_codec, random_codes) -> None:
    decoder = golden_codec.slot_decoder(1)
    frames = random_codes(golden_codec, 2).tolist()
    (kept,) = decoder.step({0: frames[:1]})[0]
    copy = kept.copy()
    decoder.step({0: frames[1:]})
    assert np.array_equal(kept, copy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("slot_count", [1, 3, 8])
def test_a_graph_of_all_slots_equals_the_cpu_and_each_slot_its_solo_run(make_mimi, random_codes, slot_count) -> None:
    settings = {"num_key_value_heads": 2, "pad_mode": "replicate"}
    on_cpu = Codec(make_mimi(**settings), 4)
    on_gpu = Codec(make_mimi(**settings).to("cuda"), 4)
    decoder, solo = on_gpu.slot_decoder(slot_count), on_gpu.slot_decoder(slot_count)
    codes = random_codes(on_gpu, 30)
    others = random_codes(on_gpu, 30, seed=1).tolist()
    expected = [np.frombuffer(sound, np.float32) for sound in alone(on_cpu, codes)]
    chosen = slot_count - 1
    for index, frame in enumerate(codes.tolist()):
        (together,) = decoder.step({**{slot: [others[index]] for slot in range(chosen)}, chosen: [frame]})[chosen]
        (apart,) = solo.step({0: [frame]})[0]
        assert together.tobytes() == apart.tobytes()
        np.testing.assert_allclose(together, expected[index], atol=1e-4, rtol=0)
