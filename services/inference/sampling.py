"""How codes are drawn from logits, the same way whatever else is in the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Each row's way to draw; all tensors are [B], on the logits' device.

    temperature float32 ≥ 0, 0 is greedy; top_k int64, 0 is all; seed int64, any value. ranked: how many logits have to
    be ranked to find every row's top_k, known to the host; 0: all rows are greedy, and nothing is drawn at all. It
    saves work and changes no result.
    """

    temperature: Tensor
    top_k: Tensor
    seed: Tensor
    ranked: int


def draw(logits: Tensor, how: Draw, noise: Tensor | None) -> Tensor:
    """Draws one code a row: logits [B, codes] float32, noise [B, codes] of `gumbel_noise` → codes [B] int64.

    Values that equal the k-th largest stay, as in the reference (model.md B.4). noise None: all rows are greedy.
    """
    greedy = logits.argmax(dim=-1)
    if noise is None:
        return greedy
    count = min(how.ranked, logits.shape[-1])
    ranked = logits.topk(count, dim=-1).values
    last = torch.where(how.top_k > 0, how.top_k, count).clamp(max=count) - 1
    out = logits < ranked.gather(-1, last[:, None])
    scaled = logits / how.temperature.clamp(min=1e-6)[:, None]
    drawn = scaled.add_(noise).masked_fill_(out, -torch.inf).argmax(dim=-1)
    return torch.where(how.temperature > 0, drawn, greedy)


def gumbel_noise(how: Draw, frame: Tensor, codebook_count: int, code_count: int) -> Tensor | None:
    """The noise of a frame, frame [B] int64 → [B, codebooks, codes] float32, standard Gumbel; None if all is greedy.

    Each number is a pure function of (seed, frame, codebook, code), so a replay and any batch draw the same codes.
    """
    if how.ranked == 0:
        return None
    device = frame.device
    row = _mix(torch.stack((how.seed, how.seed >> 32, frame)).to(torch.int32))
    row = _mix(row[0] ^ _mix(row[1] ^ _mix(row[2])))
    codebooks = torch.arange(1, codebook_count + 1, device=device, dtype=torch.int32)
    codes = torch.arange(1, code_count + 1, device=device, dtype=torch.int32)
    bits = _mix(_mix(row[:, None] ^ _mix(codebooks))[..., None] ^ _mix(codes))
    # 23 bits and a half: every value is exact in float32 and lies strictly between 0 and 1.
    uniform = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(1 / (1 << 23))
    return uniform.log_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (xorshift and multiply, twice) on int32; products wrap, and shifts are made unsigned."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x.mul_(0x7FEB352D).bitwise_xor_((x >> 15) & 0x1FFFF)
    x.mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_((x >> 16) & 0xFFFF)
