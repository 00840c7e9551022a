"""The autoregressive stack: reasoner, backbone and depth decoder are all this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.device import is_compiled_for
from services.inference.kv_cache import CachedLayer, KvCache, allocate
from services.inference.rope import Rope, RopeSettings, rope_settings, rotate

if TYPE_CHECKING:
    from services.inference.cpu.compiled_stack import CompiledStack


@dataclass(frozen=True)
class TransformerConfig:
    """The numbers of one stack; model.md A.2."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_epsilon: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    rope: RopeSettings


def transformer_config(section: dict[str, Any], *, qkv_bias: bool, default_theta: float) -> TransformerConfig:
    """Reads a stack's numbers from a config section of the Llama or Qwen2 kind.

    `qkv_bias` is the family's rule where the section does not say (`attention_bias` covers the output as well).
    """
    if (activation := section.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"hidden_act is {activation!r}; expected 'silu'")
    if other := set(section.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"layer_types has {', '.join(sorted(other))}; expected only full_attention")
    hidden, heads = int(section["hidden_size"]), int(section["num_attention_heads"])
    head_dim = int(section.get("head_dim") or hidden // heads)
    kv_heads = int(section.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads can't share {kv_heads} key-value heads evenly")
    bias = bool(section.get("attention_bias", False))
    return TransformerConfig(
        hidden_size=hidden,
        layers=int(section["num_hidden_layers"]),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=int(section["intermediate_size"]),
        norm_epsilon=float(section["rms_norm_eps"]),
        qkv_bias=qkv_bias or bias,
        output_bias=bias,
        mlp_bias=bool(section.get("mlp_bias", False)),
        rope=rope_settings(section, head_dim=head_dim, default_theta=default_theta),
    )


@dataclass(frozen=True)
class Places:
    """Where the positions of a run stand: made once for all its layers, or for all runs that stand alike.

    columns [B, W] int64: cache columns, of which a position sees those up to its own; the dump column: the position is
    not kept and its output means nothing. positions [B, W] int64: what rotates it.
    """

    columns: Tensor
    positions: Tensor
    sight: "Sight | None"

    def rows(self, count: int) -> "Places":
        """Those of the first rows."""
        sight = None if self.sight is None else self.sight.rows(count)
        return Places(self.columns[:count], self.positions[:count], sight)


@dataclass(frozen=True)
class Sight:
    """What places come to in tensors, where no compiled code works them out.

    cosines, sines [B, W, heads, head_dim]: rotations of queries, keys and values, the last by nothing. mask
    [B, 1, W * group, reach]: 0 where a position sees a column, minus infinity elsewhere; the query heads that share a
    key-value head stand side by side, as rows of one product.
    """

    cosines: Tensor
    sines: Tensor
    mask: Tensor
    reach: int

    def rows(self, count: int) -> "Sight":
        """Those of the first rows."""
        return Sight(self.cosines[:count], self.sines[:count], self.mask[:count], self.reach)


class JoinedLinear:
    """Linear layers with the same input, run as one product.

    `parts` are the layers as a checkpoint knows them; their weights are rows of one matrix, so filling them fills it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: Sequence[int], *, bias: bool) -> None:
        self.parts = [nn.Linear(inputs, count, bias=bias) for count in outputs]
        self._share(torch.empty(sum(outputs), inputs), torch.empty(sum(outputs)) if bias else None)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., inputs] → the layers' outputs side by side, [..., sum of outputs]."""
        return functional.linear(x, self.weight, self.bias)

    def join(self) -> None:
        """Joins the parts again, whose weights are no longer rows of one matrix once they were moved or converted."""
        weight = torch.cat([part.weight.detach() for part in self.parts])
        bias = None if self.bias is None else torch.cat([part.bias.detach() for part in self.parts])
        self._share(weight, bias)

    def _share(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        first = 0
        for part in self.parts:
            rows = slice(first, first + part.out_features)
            part.weight = nn.Parameter(weight[rows], requires_grad=False)
            if bias is not None:
                part.bias = nn.Parameter(bias[rows], requires_grad=False)
            first += part.out_features


class Attention(nn.Module):
    """The weights of grouped-query attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.qkv = JoinedLinear(config.hidden_size, (width, kv_width, kv_width), bias=config.qkv_bias)
        self.q_proj, self.k_proj, self.v_proj = self.qkv.parts
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.output_bias)


class Mlp(nn.Module):
    """The weights of a SiLU-gated feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.intermediate_size
        self.gate_up = JoinedLinear(config.hidden_size, (size, size), bias=config.mlp_bias)
        self.gate_proj, self.up_proj = self.gate_up.parts
        self.down_proj = nn.Linear(size, config.hidden_size, bias=config.mlp_bias)


class Layer(nn.Module):
    """The weights of attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)


class Transformer(nn.Module):
    """Layers and the final norm. Parameter names are those of the published checkpoint, less the stack's prefix.

    On a CPU in float32 it is compiled code that runs them, elsewhere torch.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.rope = Rope(config.rope)
        self._compiled: CompiledStack | None = None
        self._compiled_version = 0
        self._weights = tuple(self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and its kin go through."""
        super()._apply(fn, recurse)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.self_attn.qkv.join()
            layer.mlp.gate_up.join()
        self._compiled = None
        self._weights = tuple(self.parameters())
        return self

    @property
    def compiled(self) -> "CompiledStack | None":
        """The stack in compiled code, where that is what runs it; made anew when weights were filled meanwhile."""
        weight = self.norm.weight
        if not is_compiled_for(weight.device, weight.dtype):
            return None
        version = sum(0 if weight.is_inference() else weight._version for weight in self._weights)
        if self._compiled is None or version != self._compiled_version:
            from services.inference.cpu.compiled_stack import CompiledStack  # a GPU's machine needs no compiler

            self._compiled = CompiledStack(self.config, self.layers, weight, self.rope)
            self._compiled_version = version
        return self._compiled

    def cache(self, *, slots: int, positions: int) -> KvCache:
        """An empty cache for this stack, on its device and in its dtype."""
        weight = self.norm.weight
        return allocate(
            layers=self.config.layers,
            slots=slots,
            kv_heads=self.config.kv_heads,
            positions=positions,
            head_dim=self.config.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )

    def places(self, columns: Tensor, reach: int, positions: Tensor | None = None) -> Places:
        """Where positions stand: columns [B, W] int64; each sees the columns up to and including its own.

        The cache's dump column: the position is not kept and its output means nothing. reach: columns to look at,
        `cache.reach` of the highest. positions [B, W] int64: what the rotation uses; the columns unless given
        (model.md B.5).
        """
        positions = columns if positions is None else positions
        sees_itself = is_compiled_for(columns.device, self.norm.weight.dtype)
        return Places(columns, positions, None if sees_itself else self._sight(columns, reach, positions))

    def forward(self, x: Tensor, places: Places, cache: KvCache, wanted: Tensor | None = None) -> Tensor:
        """Runs new positions of some slots and keeps their keys and values.

        x [B, W, hidden] → the states after the final norm, [B, W, hidden]; or of the positions that are wanted alone,
        [n] int64 of 0 ..< W in ascending order, [B, n, hidden].
        """
        if places.sight is None:
            assert self.compiled is not None, "places were made for another device or dtype"
            return self.compiled.forward(x, places.columns, places.positions, cache, wanted)
        columns = places.columns[:, None, :, None]
        for layer, cached in zip(self.layers, cache.layers(places.sight.reach), strict=True):
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            joined = attention.qkv(layer.input_layernorm(x))
            x = x + attention.o_proj(self._attend(joined, columns, places.sight, cached))
            gate, up = mlp.gate_up(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
            x = x + mlp.down_proj(functional.silu(gate) * up)
        normed: Tensor = self.norm(x if wanted is None else x.index_select(1, wanted))
        return normed

    def _sight(self, columns: Tensor, reach: int, positions: Tensor) -> Sight:
        config, (batch, width) = self.config, columns.shape
        group = config.heads // config.kv_heads
        cosines, sines = self.rope(positions)
        turned, kept = (batch, width, config.heads + config.kv_heads, config.head_dim), (0, 0, 0, config.kv_heads)
        hidden = torch.arange(reach, device=columns.device) > columns[:, :, None, None]
        mask = hidden.new_zeros(hidden.shape, dtype=self.norm.weight.dtype).masked_fill_(hidden, -torch.inf)
        return Sight(
            cosines=functional.pad(cosines.expand(turned), kept, value=1.0),
            sines=functional.pad(sines.expand(turned), kept),
            mask=mask.expand(batch, width, group, reach).reshape(batch, 1, width * group, reach),
            reach=reach,
        )

    def _attend(self, joined: Tensor, columns: Tensor, sight: Sight, layer: CachedLayer) -> Tensor:
        """joined [B, W, (heads + 2 kv heads) * head_dim], columns [B, 1, W, 1] → [B, W, heads * head_dim]."""
        config, (batch, width, _) = self.config, joined.shape
        head_dim, kv_heads = config.head_dim, config.kv_heads
        rotated = rotate(joined.view(batch, width, -1, head_dim), sight.cosines, sight.sines)
        queries, new = rotated.split((config.heads, 2 * kv_heads), dim=2)
        layer.keep(new.transpose(1, 2), columns)
        grouped = queries.unflatten(2, (kv_heads, -1)).transpose(1, 2).reshape(batch, kv_heads, -1, head_dim)
        seen = functional.scaled_dot_product_attention(grouped, layer.keys, layer.values, attn_mask=sight.mask)
        return seen.unflatten(2, (width, -1)).transpose(1, 2).reshape(batch, width, -1)
