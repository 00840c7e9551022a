"""A prompt in chunks of one shape."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from services.inference.kv_cache import KvCache
from services.inference.slots import Stream

S = TypeVar("S", bound=Stream[Any, Any])


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


class PrefillQueue(Generic[S]):
    """Prefills that are under way, each an iterator that yields between pieces of bounded work.

    They take turns, so that a long prompt does not keep a short one waiting.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[S, Iterator[None]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, stream: S, pieces: Iterator[None]) -> None:
        """Starts a stream's prefill."""
        self._queue.append((stream, pieces))

    def drop(self, stream: S) -> None:
        """Forgets the prefill of a stream that leaves, if it is under way."""
        self._queue = deque(entry for entry in self._queue if entry[0] is not stream)

    def advance(self) -> S | None:
        """Does one piece; returns the stream whose prefill is complete with it. An error fails its own stream alone."""
        if not self._queue:
            return None
        stream, pieces = self._queue.popleft()
        try:
            next(pieces)
        except StopIteration:
            return None if stream.done else stream
        except Exception as error:  # whatever is wrong with one prompt is no reason to fail the others' rounds
            stream.fail(error)
        else:
            self._queue.append((stream, pieces))
        return None
