"""How codes are drawn from logits, the same way whatever else is in the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """Each row's way to draw; all tensors are [B], on the logits' device.

    temperature float32 ≥ 0, 0 is greedy; top_k int64, 0 is all; seed int64, any value.
    """

    temperature: Tensor
    top_k: Tensor
    seed: Tensor


def draw(logits: Tensor, how: Draw, frame: Tensor, codebook: int) -> Tensor:
    """Draws one code a row: logits [B, codes] float32, frame [B] int64 → codes [B] int64.

    The noise is a function of (seed, frame, codebook, code) alone, so a replay and any batch give the same codes.
    Values that equal the k-th largest stay, as in the reference (model.md B.4).
    """
    greedy = logits.argmax(dim=-1)
    count = logits.shape[-1]
    ranked = logits.sort(dim=-1, descending=True).values
    last = torch.where(how.top_k > 0, how.top_k, count).clamp(max=count) - 1
    threshold = ranked.gather(-1, last[:, None])
    scaled = logits / how.temperature.clamp(min=1e-6)[:, None]
    perturbed = torch.where(logits >= threshold, scaled, -torch.inf) + gumbel_noise(how.seed, frame, codebook, count)
    return torch.where(how.temperature > 0, perturbed.argmax(dim=-1), greedy)


def gumbel_noise(seed: Tensor, frame: Tensor, codebook: int, count: int) -> Tensor:
    """Standard Gumbel noise [B, count] float32, a pure function of its arguments. seed, frame [B] int64."""
    row = _mix(seed & _WORD)
    row = _mix(row ^ ((seed >> 32) & _WORD))
    row = _mix(row ^ (frame & _WORD))
    row = _mix(row ^ (codebook + 0x9E3779B9))
    codes = torch.arange(count, device=seed.device, dtype=torch.int64)
    bits = _mix(row[:, None] ^ _mix(codes + 1)[None])
    # 23 bits and a half: every value is exact in float32 and lies strictly between 0 and 1.
    uniform = ((bits >> 9).float() + 0.5) / (1 << 23)
    return -torch.log(-torch.log(uniform))


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (xorshift and multiply, twice) on int64 words; products wrap, the low word is exact."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
