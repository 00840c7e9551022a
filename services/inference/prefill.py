"""A prompt in chunks of one shape."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from services.inference.kv_cache import KvCache


@dataclass(frozen=True)
class Chunk:
    """One run of a prompt: embeddings [1, C, hidden]; columns [1, C] int64, the dump column where the chunk is padded.

    last [1] int64: index of the last position that is none of the padding. reach: columns to look at.
    """

    embeddings: Tensor
    columns: Tensor
    last: Tensor
    reach: int


def chunks(embeddings: Tensor, size: int, cache: KvCache) -> Iterator[Chunk]:
    """Cuts a prompt [n, hidden] into chunks of `size` positions, the last one padded.

    All have the same shape, so that a position's result does not depend on the prompt's length.
    """
    device = embeddings.device
    for start in range(0, len(embeddings), size):
        piece = embeddings[start : start + size]
        end = start + len(piece)
        padded = piece.new_zeros((1, size, piece.shape[1]))
        padded[0, : len(piece)] = piece
        columns = torch.full((1, size), cache.dump, device=device)
        columns[0, : len(piece)] = torch.arange(start, end, device=device)
        yield Chunk(padded, columns, torch.tensor([len(piece) - 1], device=device), cache.reach(end - 1))
