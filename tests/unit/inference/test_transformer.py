"""The stack: transformers' Llama and Qwen2, whatever the chunks; and bits that hang on nothing but the row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from services.inference.kv_cache import KvCache
from services.inference.transformer import JoinedLinear, Transformer, transformer_config

POSITIONS = 64
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 0.25,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Family:
    """A stack of transformers and the config section that it would publish."""

    reference: nn.Module
    section: dict[str, Any]
    qkv_bias: bool


def llama(spelling: str = "new", scaling: dict[str, Any] | None = None, **numbers: Any) -> Family:
    section = stack_numbers(**numbers) | {"rms_norm_eps": 1e-5}
    reference = LlamaModel(LlamaConfig(**section, rope_parameters={"rope_theta": 5e5, **(scaling or plain())}))
    return Family(reference, section | spelled(spelling, 5e5, scaling), qkv_bias=False)


def qwen2(spelling: str = "new", **numbers: Any) -> Family:
    section = stack_numbers(**numbers) | {"rms_norm_eps": 1e-6}
    reference = Qwen2Model(Qwen2Config(**section, rope_parameters={"rope_theta": 1e6, **plain()}))
    return Family(reference, section | spelled(spelling, 1e6, None), qkv_bias=True)


def plain() -> dict[str, Any]:
    return {"rope_type": "default"}


def spelled(spelling: str, theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    if spelling == "new":
        return {"rope_parameters": {"rope_theta": theta, **(scaling or plain())}}
    return {"rope_theta": theta, "rope_scaling": scaling}


def stack_numbers(*, heads: int, kv_heads: int, head_dim: int, layers: int, hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 2 * hidden + 8,
        "max_position_embeddings": 256,
        "vocab_size": 8,
        **more,
    }


FAMILIES = {
    "llama, plain": lambda: llama(heads=4, kv_heads=2, head_dim=12, layers=3, hidden=48),
    "llama, old spelling": lambda: llama("old", heads=2, kv_heads=1, head_dim=16, layers=1, hidden=20),
    "llama3": lambda: llama(scaling=LLAMA3, heads=8, kv_heads=2, head_dim=8, layers=2, hidden=64),
    "llama3, old spelling": lambda: llama("old", LLAMA3, heads=3, kv_heads=3, head_dim=32, layers=2, hidden=36),
    "llama, biases": lambda: llama(
        heads=4, kv_heads=1, head_dim=16, layers=2, hidden=32, attention_bias=True, mlp_bias=True
    ),
    "qwen2": lambda: qwen2(heads=4, kv_heads=2, head_dim=12, layers=3, hidden=48),
    "qwen2, old spelling": lambda: qwen2("old", heads=6, kv_heads=2, head_dim=8, layers=2, hidden=48),
    "qwen2, one head": lambda: qwen2(heads=1, kv_heads=1, head_dim=64, layers=1, hidden=64),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    made = FAMILIES[request.param]()
    randomize(made.reference)
    return made


@pytest.fixture
def stack() -> Transformer:
    """A stack with grouped heads and scaled rope, for the laws about bits."""
    made = llama(scaling=LLAMA3, heads=4, kv_heads=2, head_dim=16, layers=3, hidden=48)
    randomize(made.reference)
    return ours(made)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name:
                parameter.add_(1.0)
    module.eval()


def ours(family: Family) -> Transformer:
    stack = Transformer(transformer_config(family.section, qkv_bias=family.qkv_bias, default_theta=1e4))
    weights = {name: tensor for name, tensor in family.reference.state_dict().items() if "embed_tokens" not in name}
    stack.load_state_dict(weights, strict=True)
    return stack.eval()


def inputs(seed: int, count: int, hidden: int) -> Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))


def prefill(stack: Transformer, x: Tensor, cache: KvCache, slot: int, cuts: list[int], width: int) -> Tensor:
    """Runs x [n, hidden] into one slot in pieces that end at `cuts`, each padded to `width` → states [n, hidden]."""
    states = []
    for start, end in zip([0, *cuts], [*cuts, len(x)], strict=True):
        count = end - start
        padded = x.new_zeros(1, width, x.shape[1])
        padded[0, :count] = x[start:end]
        columns = torch.full((1, width), cache.dump)
        columns[0, :count] = torch.arange(start, end)
        out = stack(padded, stack.places(columns, cache.reach(end - 1)), cache.slot(slot))
        states.append(out[0, :count])
    return torch.cat(states)


def decode(stack: Transformer, rows: dict[int, tuple[Tensor, int]], cache: KvCache) -> Tensor:
    """One step of all slots; rows: slot → (x [hidden], column). The others sit out."""
    hidden = stack.config.hidden_size
    x, columns = torch.zeros(cache.slot_count, 1, hidden), torch.full((cache.slot_count, 1), cache.dump)
    for slot, (row, column) in rows.items():
        x[slot, 0], columns[slot, 0] = row, column
    highest = max((column for _, column in rows.values()), default=0)
    return stack(x, stack.places(columns, cache.reach(highest)), cache)[:, 0]


@pytest.mark.parametrize("chunk", [1, 3, 8, 24, 64])
def test_prefill_in_chunks_then_decode_equals_transformers(family: Family, chunk: int) -> None:
    stack, x = ours(family), inputs(0, 40, family.section["hidden_size"])
    expected = family.reference(inputs_embeds=x[None]).last_hidden_state[0]
    cache = stack.cache(slots=2, positions=POSITIONS)
    prefilled = prefill(stack, x[:24], cache, 1, list(range(chunk, 24, chunk)), chunk)
    decoded = [decode(stack, {1: (x[i], i)}, cache)[1] for i in range(24, 40)]
    torch.testing.assert_close(torch.cat((prefilled, torch.stack(decoded))), expected, rtol=1e-4, atol=1e-4)


def test_slots_at_different_positions_each_equal_transformers(family: Family) -> None:
    stack, hidden = ours(family), family.section["hidden_size"]
    prompts = {slot: inputs(slot, 12 + 5 * slot, hidden) for slot in range(3)}
    expected = {s: family.reference(inputs_embeds=x[None]).last_hidden_state[0] for s, x in prompts.items()}
    cache = stack.cache(slots=3, positions=POSITIONS)
    for slot, x in prompts.items():
        prefill(stack, x[:4], cache, slot, [], 8)
    for step in range(18):
        rows = {slot: (x[4 + step], 4 + step) for slot, x in prompts.items() if 4 + step < len(x)}
        states = decode(stack, rows, cache)
        for slot, (_, column) in rows.items():
            torch.testing.assert_close(states[slot], expected[slot][column], rtol=1e-4, atol=1e-4)


def test_positions_apart_from_columns_equal_transformers_with_position_ids(stack: Transformer) -> None:
    made = llama(scaling=LLAMA3, heads=4, kv_heads=2, head_dim=16, layers=3, hidden=48)
    randomize(made.reference)
    x, positions = inputs(0, 8, 48), torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]])
    causal = torch.full((8, 8), -torch.inf).triu(1)[None, None]
    expected = made.reference(inputs_embeds=x[None], position_ids=positions, attention_mask=causal).last_hidden_state
    cache = stack.cache(slots=1, positions=8)
    states = stack(x[None], stack.places(torch.arange(8)[None], 8, positions), cache)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_gives_the_same_bits_in_every_slot_whatever_was_there(stack: Transformer) -> None:
    x = inputs(0, 40, 48)
    cache = stack.cache(slots=4, positions=POSITIONS)
    expected = prefill(stack, x, cache, 0, [16, 32], 16)
    prefill(stack, inputs(9, 60, 48), cache, 2, [16, 32, 48], 16)
    for slot in (1, 2, 3, 0):
        assert prefill(stack, x, cache, slot, [16, 32], 16).equal(expected)
        assert cache.keys[:, slot, :, :40].equal(cache.keys[:, 0, :, :40])
        assert cache.values[:, slot, :, :40].equal(cache.values[:, 0, :, :40])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 39])
def test_what_follows_a_position_changes_no_bit_of_it(stack: Transformer, length: int) -> None:
    x = inputs(0, 40, 48)
    cache = stack.cache(slots=2, positions=POSITIONS)
    expected = prefill(stack, x, cache, 0, [16, 32], 16)
    cuts = [cut for cut in (16, 32) if cut < length]
    assert prefill(stack, x[:length], cache, 1, cuts, 16).equal(expected[:length])


@pytest.mark.parametrize("cuts", [[1], [7, 8, 20], [16], [5, 10, 15, 25, 39]])
def test_where_a_prompt_is_cut_changes_no_bit_of_it(stack: Transformer, cuts: list[int]) -> None:
    x = inputs(0, 40, 48)
    cache = stack.cache(slots=2, positions=POSITIONS)
    expected = prefill(stack, x, cache, 0, [], 40)
    assert prefill(stack, x, cache, 1, cuts, 40).equal(expected)


def test_a_row_does_not_depend_on_its_neighbours(stack: Transformer) -> None:
    x = inputs(0, 30, 48)

    def run(neighbours: list[int]) -> Tensor:
        cache = stack.cache(slots=4, positions=POSITIONS)
        for slot in (2, *neighbours):
            prefill(stack, x[:10] if slot == 2 else inputs(slot, 20, 48), cache, slot, [8] if slot == 2 else [8, 16], 8)
        states = []
        for column in range(10, 30):
            rows = {2: (x[column], column)}
            rows |= {slot: (inputs(slot + column, 1, 48)[0], column + 10 * slot) for slot in neighbours if slot != 3}
            states.append(decode(stack, rows, cache)[2])
        return torch.stack(states)

    alone = run([])
    assert run([0]).equal(alone)
    assert run([0, 1, 3]).equal(alone)


def test_a_slot_that_sits_out_keeps_its_cache(stack: Transformer) -> None:
    cache = stack.cache(slots=3, positions=POSITIONS)
    for slot in range(3):
        prefill(stack, inputs(slot, 16, 48), cache, slot, [], 16)
    before = (cache.keys.clone(), cache.values.clone())
    decode(stack, {1: (inputs(8, 1, 48)[0], 16)}, cache)
    prefill(stack, inputs(9, 5, 48), cache, 1, [], 16)
    for now, then in zip((cache.keys, cache.values), before, strict=True):
        assert now[:, [0, 2], :, :POSITIONS].equal(then[:, [0, 2], :, :POSITIONS])
        assert not now[:, 1].equal(then[:, 1])


@pytest.mark.parametrize("first", [0, 150, 300, 700])
@pytest.mark.parametrize("width", [1, 2, 16, 128])
def test_a_farther_reach_changes_no_bit(stack: Transformer, first: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, width, 48, generator=generator)
    columns = torch.stack((torch.arange(first, first + width), torch.arange(7, 7 + width)))
    cache = stack.cache(slots=2, positions=2000)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=generator))
    cache.values.copy_(torch.randn(cache.values.shape, generator=generator))
    reaches = sorted({cache.reach(column) for column in range(int(columns.max()), 2000)})
    assert len(reaches) >= (3 if first <= 300 else 2)
    nearest, *farther = (stack(x, stack.places(columns, reach), KvCache(cache.entries.clone())) for reach in reaches)
    assert all(states.equal(nearest) for states in farther)


def test_compiled_code_and_torch_agree(family: Family) -> None:
    """In float64 torch runs the stack, as on a GPU: the oracle of what runs in float32."""
    stack, x = ours(family), inputs(0, 40, family.section["hidden_size"])
    assert stack.compiled is not None
    exact = ours(family).double()
    assert exact.compiled is None
    caches = [made.cache(slots=2, positions=POSITIONS) for made in (stack, exact)]
    states = prefill(stack, x, caches[0], 1, [3, 16], 24)
    expected = prefill(exact, x.double(), caches[1], 1, [3, 16], 24)
    torch.testing.assert_close(states.double(), expected, rtol=1e-5, atol=1e-5)
    kept = [cache.entries[:, 1, :, :40].double() for cache in caches]
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [[0], [7], [2, 3, 7], []])
def test_states_that_are_wanted_alone_are_those_of_all(family: Family, dtype: torch.dtype, wanted: list[int]) -> None:
    stack, x = ours(family).to(dtype), inputs(0, 16, family.section["hidden_size"]).to(dtype).view(2, 8, -1)
    cache = stack.cache(slots=2, positions=POSITIONS)
    columns = torch.arange(8).expand(2, 8).clone()
    columns[1, 7] = cache.dump
    places = stack.places(columns, cache.reach(7))
    states = stack(x, places, cache)
    kept = cache.entries[:, :, :, :7].clone()
    cache.clear()
    some = stack(x, places, cache, wanted=torch.tensor(wanted, dtype=torch.int64))
    assert some.shape == (2, len(wanted), x.shape[2])
    assert some[0].equal(states[0, wanted])
    assert some[1, :-1].equal(states[1, wanted][:-1])
    assert cache.entries[:, :, :, :7].equal(kept)


def test_a_masked_columns_content_changes_no_bit(stack: Transformer) -> None:
    """What an earlier stream left in a slot is never seen."""
    x = inputs(0, 20, 48)
    clean, used = (stack.cache(slots=1, positions=POSITIONS) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    used.keys.copy_(1e3 * torch.randn(used.keys.shape, generator=generator))
    used.values.copy_(1e3 * torch.randn(used.values.shape, generator=generator))
    assert prefill(stack, x, clean, 0, [16], 16).equal(prefill(stack, x, used, 0, [16], 16))


def fill(parts: list[nn.Linear], seed: int = 0) -> None:
    """Small whole numbers: sums of them are exact in any order, so that results can be compared by their bits."""
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        for tensor in part.state_dict().values():
            tensor.copy_(torch.randint(-4, 5, tensor.shape, generator=generator))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [(5,), (8, 4, 4), (16, 16)])
def test_a_joined_layer_equals_its_parts_whose_tensors_fill_it(outputs: tuple[int, ...], bias: bool) -> None:
    joined = JoinedLinear(12, outputs, bias=bias)
    x = torch.randint(-4, 5, (2, 3, 12), generator=torch.Generator().manual_seed(1)).float()
    for seed in range(2):  # in place, so a second filling counts as well
        fill(joined.parts, seed)
        assert [part.weight.shape for part in joined.parts] == [(count, 12) for count in outputs]
        assert all((part.bias is not None) == bias for part in joined.parts)
        together = functional.linear(x, joined.weight, joined.bias)
        assert together.equal(torch.cat([part(x) for part in joined.parts], dim=-1))


def test_a_stack_keeps_the_published_names_and_its_joined_weights_once(stack: Transformer) -> None:
    layer = {name.removeprefix("layers.0.") for name in stack.state_dict() if name.startswith("layers.0.")}
    projections = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    assert layer == projections | {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")} | {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    assert not any(parameter.requires_grad for name, parameter in stack.named_parameters() if "q_proj" in name)
    for parts in ("q k v", "gate up"):
        tensors = [tensor for name, tensor in stack.state_dict().items() if name.split(".")[-2][:-5] in parts.split()]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == stack.config.layers


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_converted_stack_still_runs_on_what_its_tensors_hold(qkv_bias: bool) -> None:
    family = (qwen2 if qkv_bias else llama)(heads=4, kv_heads=2, head_dim=12, layers=2, hidden=48)
    randomize(family.reference)
    x = inputs(0, 8, 48)
    with torch.inference_mode(False):  # where tensors know that they were changed
        made = ours(family).double().float()
    expected = family.reference(inputs_embeds=x[None]).last_hidden_state[0]
    states = prefill(made, x, made.cache(slots=1, positions=POSITIONS), 0, [], 8)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    randomize(made)
    changed = prefill(made, x, made.cache(slots=1, positions=POSITIONS), 0, [], 8)
    assert not torch.allclose(changed, states)
    family.reference.load_state_dict(made.state_dict(), strict=False)
    expected = family.reference(inputs_embeds=x[None]).last_hidden_state[0]
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"num_key_value_heads": 3}, "4 attention heads can't share 3 key-value heads"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
    ],
)
def test_a_stack_of_another_kind_is_refused(change: dict[str, Any], says: str) -> None:
    section = llama(heads=4, kv_heads=2, head_dim=12, layers=2, hidden=48).section
    with pytest.raises(ValueError, match=says):
        transformer_config(section | change, qkv_bias=False, default_theta=1e4)


def test_numbers_that_a_config_may_leave_out() -> None:
    section = llama(heads=4, kv_heads=4, head_dim=12, layers=2, hidden=48).section
    without = {key: value for key, value in section.items() if key not in ("head_dim", "num_key_value_heads")}
    full, derived = (transformer_config(s, qkv_bias=False, default_theta=1e4) for s in (section, without))
    assert derived == full
