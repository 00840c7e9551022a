"""A row of a matrix product has the same bits wherever it stands, beside whomever, in any of the counts to compute."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from services.inference.batch_rows import FEWEST_ROWS, batch_rows
from services.inference.checkpoint_spec import open_checkpoint
from services.inference.kv_cache import KvCache
from services.inference.product import Product
from services.inference.rope import rope_settings
from services.inference.transformer import Attention, Transformer, TransformerConfig
from services.reasoner.model import ReasonerModel
from services.reasoner.weights import read_config as read_reasoner_config
from services.speech.model import SpeechModel
from services.speech.weights import read_config as read_speech_config
from tests.conftest import GOLDEN
from tests.unit.stream_visits import threads

CPU = torch.device("cpu")
CHECKPOINTS = ["random:tiny", "random:small", str(GOLDEN / "checkpoint")]
# Slots from one to many, and chunks of a prompt.
COUNTS = [*range(1, 26), 32, 40, 64, 100, 128, 256, 500]


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with threads(request.param), torch.inference_mode():
        yield


def test_rows_are_whole_fours_for_every_thread_and_never_more_than_needed() -> None:
    multiple = FEWEST_ROWS * torch.get_num_threads()
    for count in range(1, 200):
        rows = batch_rows(count, CPU)
        assert rows % multiple == 0
        assert count <= rows < count + multiple
    assert batch_rows(0, CPU) == 0


def test_on_cuda_no_row_is_added() -> None:
    assert [batch_rows(count, torch.device("cuda")) for count in range(1, 20)] == list(range(1, 20))


def linear_shapes() -> list[tuple[int, int, bool]]:
    """Inputs, outputs and bias of every linear layer of the autoregressive stacks and their heads; and odd ones."""
    shapes = {(33, 65, False), (127, 100, True), (1000, 16, False), (700, 2051, True), (2048, 512, False)}
    for spec in CHECKPOINTS:
        config = open_checkpoint(spec).config
        with torch.device("meta"):
            models = (SpeechModel(read_speech_config(config), "reference"), ReasonerModel(read_reasoner_config(config)))
        for module in (part for model in models for part in model.modules()):
            for joined in (module.qkv if isinstance(module, Attention) else None, getattr(module, "gate_up", None)):
                if joined is not None:
                    outputs, inputs = joined.weight.shape
                    shapes.add((inputs, outputs, joined.bias is not None))
            if isinstance(module, nn.Linear):
                shapes.add((module.in_features, module.out_features, module.bias is not None))
    return sorted(shapes)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pick(count: int) -> Tensor:
    """Which of 16 rows stands at each of `count` places."""
    return torch.randint(16, (count,), generator=torch.Generator().manual_seed(count))


def test_a_linear_row_does_not_depend_on_its_place_its_neighbours_or_how_many_they_are() -> None:
    for inputs, outputs, bias in linear_shapes():
        weight, offset = random(outputs, inputs), random(outputs, seed=1) if bias else None
        rows, nobody, product = random(16, inputs, seed=2), torch.zeros(batch_rows(1, CPU) - 1, inputs), Product()
        expected = torch.stack([product(torch.cat((row[None], nobody)), weight, offset)[0] for row in rows])
        for count in {batch_rows(count, CPU) for count in COUNTS}:
            chosen = pick(count)
            # As prompts' chunks have them, and as steps do.
            for shape in ((1, count, inputs), (count, 1, inputs)):
                found = product(rows[chosen].view(shape), weight, offset).view(count, outputs)
                assert found.equal(expected[chosen]), (inputs, outputs, bias, shape)


@pytest.mark.parametrize("spec", CHECKPOINTS, ids=["tiny", "small", "golden"])
def test_a_row_of_a_depth_decoders_head_does_not_either(spec: str) -> None:
    """Its weights lie the other way round, and its rows are the last of two."""
    config = read_speech_config(open_checkpoint(spec).config)
    width, fewest = config.depth_decoder.hidden_size, batch_rows(1, CPU)
    head, rows, product = random(width, config.logit_count).t(), random(16, width, seed=2), Product()
    expected = torch.stack([product(torch.stack([row, *rows[: fewest - 1]]), head, None)[0] for row in rows])
    for count in {batch_rows(count, CPU) for count in COUNTS}:
        chosen = pick(count)
        states = torch.stack((rows[chosen.flip(0)], rows[chosen]), dim=1)
        assert product(states[:, -1], head, None).equal(expected[chosen]), count


def stack(heads: int, kv_heads: int) -> Transformer:
    """A random stack."""
    rope = rope_settings({"rope_theta": 1e4, "max_position_embeddings": 2048}, head_dim=16, default_theta=1e4)
    made = Transformer(TransformerConfig(64, 3, heads, kv_heads, 16, 160, 1e-6, True, False, False, rope))
    for number, (name, tensor) in enumerate(sorted(made.state_dict().items())):
        tensor.copy_(random(*tensor.shape, seed=number) * (0.2 if tensor.ndim > 1 else 0.1)).add_("norm" in name)
    return made.eval()


HEADS = [(8, 2), (4, 1), (4, 2), (2, 2), (1, 1)]


def filled(made: Transformer, slot_count: int, prompt: Tensor, slot: int) -> KvCache:
    """A cache with the prompt's keys and values in one slot, and others' in the others."""
    cache = made.cache(slots=slot_count, positions=1024)
    for each in range(slot_count):
        x = prompt if each == slot else random(*prompt.shape, seed=each)
        columns = torch.arange(len(x))[None]
        made(x[None], made.places(columns, cache.reach(len(x) - 1)), cache.slot(each))
    return cache


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_step_does_not_depend_on_the_slot_or_how_many_slots_there_are(heads: int, kv_heads: int) -> None:
    made, prompt, following = stack(heads, kv_heads), random(16, 64), random(3, 64, seed=7)

    def states(slot_count: int, slot: int) -> Tensor:
        cache, found = filled(made, slot_count, prompt, slot), []
        for offset, x in enumerate(following):
            rows = random(batch_rows(slot_count, CPU), 1, 64, seed=offset)
            rows[slot, 0] = x
            columns = torch.arange(slot_count)[:, None] * 50 + 20
            columns[slot] = len(prompt) + offset
            found.append(made(rows, made.places(columns, cache.reach(int(columns.max()))), cache)[slot, 0])
        return torch.stack(found)

    expected = states(1, 0)
    for slot_count in (2, 3, 5, 8, 13):
        for slot in {0, slot_count // 2, slot_count - 1}:
            assert states(slot_count, slot).equal(expected), (slot_count, slot)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_prompts_positions_do_not_depend_on_the_chunk_they_are_run_in(heads: int, kv_heads: int) -> None:
    made, prompt = stack(heads, kv_heads), random(70, 64)

    def states(size: int, first: int) -> Tensor:
        """In chunks of one size, after a first one that is cut short."""
        size, cache, found, start = batch_rows(size, CPU), made.cache(slots=1, positions=1024), [], 0
        while start < len(prompt):
            end = min(first if start == 0 else start + size, len(prompt))
            x, columns = torch.zeros(1, size, 64), torch.full((1, size), cache.dump)
            x[0, : end - start], columns[0, : end - start] = prompt[start:end], torch.arange(start, end)
            found.append(made(x, made.places(columns, cache.reach(end - 1)), cache)[0, : end - start])
            start = end
        return torch.cat(found)

    expected = states(64, 64)
    for size in (4, 16, 24, 100, 512):
        for first in (1, 3, batch_rows(size, CPU)):
            assert states(size, min(first, batch_rows(size, CPU))).equal(expected), (size, first)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 1), (8, 1)])
def test_a_position_is_the_same_alone_and_behind_two_others_that_are_left_out(heads: int, kv_heads: int) -> None:
    """What a frame without a step is spared, where a key-value head has four query heads or more."""
    assert heads // kv_heads >= FEWEST_ROWS
    made, prompt, slot_count = stack(heads, kv_heads), random(16, 64), 3
    rows = batch_rows(slot_count, CPU)
    caches = [filled(made, slot_count, prompt, 1) for _ in range(2)]
    for offset in range(3):
        x = random(rows, 3, 64, seed=offset)
        columns = torch.full((slot_count, 3), caches[0].dump)
        columns[:, 2] = len(prompt) + offset
        behind, alone = (
            made(x[:, 3 - width :], made.places(columns[:, 3 - width :], 512), cache)[:slot_count, -1]
            for width, cache in zip((3, 1), caches, strict=True)
        )
        assert alone.equal(behind)
    kept = [cache.entries[:, :, :, : cache.dump] for cache in caches]
    assert kept[0].equal(kept[1])
