"""How codes are drawn from logits, the same way whatever else is in the batch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

# What a draw may have to rank, in steps: few sizes, so few shapes. The next one is all.
_FEW = 64


@dataclass(frozen=True)
class Draw:
    """Each row's way to draw; all tensors are [n], on the logits' device.

    temperature float32 ≥ 0, 0 is greedy; top_k int64, 0 is all; seed int64, any value. ranked: how many logits have to
    be ranked to find every row's top_k, `ranked_count`, which changes no result; 0: all rows are greedy, and nothing is
    drawn at all.
    """

    temperature: Tensor
    top_k: Tensor
    seed: Tensor
    ranked: int

    @cached_property
    def _last_kept(self) -> Tensor:
        """Where each row's top_k-th largest logit is among its ranked ones, counted from the end: [n, 1]."""
        return torch.where(self.top_k > 0, self.top_k, self.ranked).clamp(max=self.ranked)[:, None]

    def least_kept(self, logits: Tensor) -> Tensor:
        """Each row's top_k-th largest logit, the smallest where top_k is 0: logits [n, codes] → [n, 1]."""
        return logits.topk(self.ranked, dim=-1).values.gather(-1, self._last_kept - 1)


def ranked_count(top_k: int, code_count: int) -> int:
    """What `Draw.ranked` must be for the largest top_k that is drawn with, 0 being all."""
    return _FEW if 0 < top_k <= _FEW < code_count else code_count


def draw(logits: Tensor, how: Draw, noise: Tensor | None) -> Tensor:
    """Draws one code a row: logits [B, codes] float32, noise [n, codes] of `GumbelNoise` → codes [B] int64.

    Values that equal the k-th largest stay, as in the reference (model.md B.4). noise None: all rows are greedy. A row
    that does not draw gets any code.
    """
    if noise is None:
        return logits.argmax(dim=-1)
    out = logits < how.least_kept(logits)
    return (logits + noise).masked_fill_(out, -torch.inf).argmax(dim=-1)


class GumbelNoise(nn.Module):
    """The noise that frames are drawn with.

    Each number is a pure function of (seed, frame, codebook, code), so a replay and any batch draw the same codes. What
    hangs on codebook and code alone is hashed once.
    """

    places: Tensor

    def __init__(self, codebook_count: int, code_count: int) -> None:
        super().__init__()
        # Numbers that no codebook shares with a code: the hash of a pair must not be that of the pair turned round.
        codebooks = -torch.arange(1, codebook_count + 1, dtype=torch.int32)
        codes = torch.arange(1, code_count + 1, dtype=torch.int32)
        self.register_buffer("places", _mix(_mix(codebooks)[:, None] ^ _mix(codes)), persistent=False)

    def forward(self, how: Draw, frame: Tensor) -> Tensor | None:
        """A frame's noise, frame [n] int64 → [n, codebooks, codes] float32; None if all rows are greedy.

        Standard Gumbel noise times the row's temperature: the largest sum of logit and noise is a draw from the softmax
        of logits over temperature, and the largest logit where the temperature is 0.
        """
        if how.ranked == 0:
            return None
        row = _mix(torch.stack((how.seed, how.seed >> 32, frame)).to(torch.int32))
        row = _mix(row[0] ^ _mix(row[1] ^ _mix(row[2])))
        # Both sides are hashed already, and only high bits are used: one round of the hash is left to do.
        bits = (self.places ^ row[:, None, None]).mul_(0x7FEB352D)
        bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - (1 << 32))
        # 23 bits and a half: every value is exact in float32 and lies strictly between 0 and 1.
        uniform = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(1 / (1 << 23))
        return uniform.log_().neg_().log_().mul_(-how.temperature[:, None, None])


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (xorshift and multiply, twice) on int32; products wrap, and shifts are made unsigned."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x.mul_(0x7FEB352D).bitwise_xor_((x >> 15) & 0x1FFFF)
    x.mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_((x >> 16) & 0xFFFF)
