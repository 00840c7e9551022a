"""The autoregressive stack: reasoner, backbone and depth decoder are all this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.inference.kv_cache import KvCache, allocate
from services.inference.rope import Rope, RopeSettings, rope_settings, rotate


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

    columns [B, W] int64: cache columns. cosines, sines [B, 1, W, head_dim]: rotations. mask [B, 1, W, reach] bool:
    what each position sees.
    """

    columns: Tensor
    cosines: Tensor
    sines: Tensor
    mask: Tensor


class JoinedLinear:
    """Linear layers with the same input, run as one product.

    `parts` are the layers as a checkpoint knows them; their weights are rows of one matrix, so filling them fills it.
    """

    def __init__(self, inputs: int, outputs: Sequence[int], *, bias: bool) -> None:
        self.parts = [nn.Linear(inputs, count, bias=bias) for count in outputs]
        self._share(torch.empty(sum(outputs), inputs), torch.empty(sum(outputs)) if bias else None)

    def join(self) -> None:
        """Joins the parts again, whose weights are no longer rows of one matrix once they were moved or converted."""
        weight = torch.cat([part.weight.detach() for part in self.parts])
        bias = None if self._bias is None else torch.cat([part.bias.detach() for part in self.parts])
        self._share(weight, bias)

    def _share(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        first = 0
        for part in self.parts:
            rows = slice(first, first + part.out_features)
            part.weight = nn.Parameter(weight[rows], requires_grad=False)
            if bias is not None:
                part.bias = nn.Parameter(bias[rows], requires_grad=False)
            first += part.out_features

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., inputs] → the layers' outputs side by side, [..., sum of outputs]."""
        return functional.linear(x, self._weight, self._bias)


class Attention(nn.Module):
    """Grouped-query attention over a slot's cached positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self._qkv = JoinedLinear(config.hidden_size, (width, kv_width, kv_width), bias=config.qkv_bias)
        self.q_proj, self.k_proj, self.v_proj = self._qkv.parts
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.output_bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and its kin go through."""
        super()._apply(fn, recurse)
        self._qkv.join()
        return self

    def forward(self, x: Tensor, places: Places, cache: KvCache, layer: int) -> Tensor:
        """x [B, W, hidden] → [B, W, hidden]."""
        batch, width, _ = x.shape
        heads = self._qkv(x).view(batch, width, -1, self.head_dim).transpose(1, 2)
        rotating, values = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        rotated = rotate(rotating, places.cosines, places.sines)
        queries, keys = rotated.split((self.heads, self.kv_heads), dim=1)
        all_keys, all_values = cache.update(layer, keys, values, places.columns, places.mask.shape[-1])
        seen = functional.scaled_dot_product_attention(
            queries, all_keys, all_values, attn_mask=places.mask, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(seen.transpose(1, 2).reshape(batch, width, -1))


class Mlp(nn.Module):
    """SiLU-gated feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.intermediate_size
        self._gate_up = JoinedLinear(config.hidden_size, (size, size), bias=config.mlp_bias)
        self.gate_proj, self.up_proj = self._gate_up.parts
        self.down_proj = nn.Linear(size, config.hidden_size, bias=config.mlp_bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and its kin go through."""
        super()._apply(fn, recurse)
        self._gate_up.join()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [B, W, hidden] → [B, W, hidden]."""
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate).mul_(up))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)


class Transformer(nn.Module):
    """Layers and the final norm. Parameter names are those of the published checkpoint, less the stack's prefix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.rope = Rope(config.rope)

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
        cosines, sines = self.rope(columns if positions is None else positions)
        mask = torch.arange(reach, device=columns.device) <= columns[:, None, :, None]
        return Places(columns, cosines, sines, mask)

    def forward(self, x: Tensor, places: Places, cache: KvCache) -> Tensor:
        """Runs new positions of some slots and keeps their keys and values.

        x [B, W, hidden]; B rows of the cache. Returns the states after the final norm, [B, W, hidden].
        """
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = x + layer.self_attn(layer.input_layernorm(x), places, cache, index)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)
