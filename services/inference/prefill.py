"""A prompt in chunks of one shape."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto
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


def chunks(embeddings: Tensor, size: int, cache: KvCache, first: int = 0) -> Iterator[Chunk]:
    """Cuts a prompt, or its rest from position `first` on, [n, hidden], into chunks of `size` positions.

    The last one is padded: all have the same shape, so that a position's result depends neither on the prompt's length
    nor on where the prompt was cut.
    """
    device = embeddings.device
    for offset in range(0, len(embeddings), size):
        piece = embeddings[offset : offset + size]
        start, end = first + offset, first + offset + len(piece)
        padded = piece.new_zeros((1, size, piece.shape[1]))
        padded[0, : len(piece)] = piece
        columns = torch.full((1, size), cache.dump, device=device)
        columns[0, : len(piece)] = torch.arange(start, end, device=device)
        yield Chunk(padded, columns, torch.tensor([len(piece) - 1], device=device), cache.reach(end - 1))


class Progress(Enum):
    """What a prefill did before it yielded."""

    WORKED = auto()
    WAITED = auto()


Pieces = Generator[Progress, None, None]


class PrefillQueue(Generic[S]):
    """Prefills that are under way, each a generator that yields between pieces of bounded work.

    Every other piece is for the stream that is due first, the ones between for the stream whose last piece is longest
    ago: what is urgent is quick, and a long prompt does not keep a short one waiting. One that waits for another
    prefill lets the next one go.
    """

    def __init__(self) -> None:
        # The one whose last piece is longest ago comes first.
        self._queue: list[tuple[S, Pieces]] = []
        self._is_urgent_turn = True

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, stream: S, pieces: Pieces) -> None:
        """Starts a stream's prefill."""
        self._queue.append((stream, pieces))

    def drop(self, stream: S) -> None:
        """Ends the prefill of a stream that leaves, if it is under way."""
        for entry in self._queue:
            if entry[0] is stream:
                self._queue.remove(entry)
                entry[1].close()
                return

    def advance(self) -> S | None:
        """Does one piece; returns the stream whose prefill is complete with it. An error fails its own stream alone."""
        turns = sorted(self._queue, key=lambda entry: entry[0].due_at) if self._is_urgent_turn else list(self._queue)
        self._is_urgent_turn = not self._is_urgent_turn
        for entry in turns:
            stream, pieces = entry
            self._queue.remove(entry)
            try:
                progress = next(pieces)
            except StopIteration:
                return None if stream.done else stream
            except Exception as error:  # whatever is wrong with one prompt is no reason to fail the others' rounds
                stream.fail(error)
                return None
            self._queue.append(entry)
            if progress is Progress.WORKED:
                return None
        return None
