"""The autoregressive stack: reasoner, backbone and depth decoder are all this one."""

from dataclasses import dataclass
from typing import Any

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


class Attention(nn.Module):
    """Grouped-query attention over a slot's cached positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.output_bias)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], columns: Tensor, mask: Tensor, cache: KvCache, layer: int
    ) -> Tensor:
        """x [B, W, hidden] → [B, W, hidden]; mask [B, 1, W, reach]."""
        batch, width, _ = x.shape
        queries = self.q_proj(x).view(batch, width, self.heads, self.head_dim).transpose(1, 2)
        keys = self.k_proj(x).view(batch, width, self.kv_heads, self.head_dim).transpose(1, 2)
        values = self.v_proj(x).view(batch, width, self.kv_heads, self.head_dim).transpose(1, 2)
        all_keys, all_values = cache.update(layer, rotate(keys, *angles), values, columns, mask.shape[-1])
        seen = functional.scaled_dot_product_attention(
            rotate(queries, *angles), all_keys, all_values, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(seen.transpose(1, 2).reshape(batch, width, -1))


class Mlp(nn.Module):
    """SiLU-gated feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, W, hidden] → [B, W, hidden]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


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

    def forward(
        self, x: Tensor, columns: Tensor, cache: KvCache, reach: int, positions: Tensor | None = None
    ) -> Tensor:
        """Runs new positions of some slots and keeps their keys and values.

        x [B, W, hidden]; B rows of the cache. columns [B, W] int64: where each position goes in its row; it sees
        columns up to and including its own. `cache.dump` there: the position is not kept and its output means
        nothing. reach: columns to look at, `cache.reach` of the highest. positions [B, W] int64: what the rotation
        uses; the columns unless given (model.md B.5).
        Returns the states after the final norm, [B, W, hidden].
        """
        angles = self.rope(columns if positions is None else positions)
        mask = torch.arange(reach, device=x.device) <= columns[:, None, :, None]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = x + layer.self_attn(layer.input_layernorm(x), angles, columns, mask, cache, index)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)
