"""The streaming decode of all slots with host values on both sides: once for a CPU, once for a GPU."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.codec.mimi import DecodeState, StreamingDecoder, exact_float32
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize

# A round of more would keep the listener waiting whose sound is due first.
_MOST_AT_ONCE = 8


class SlotDecoder(Protocol):
    """Decodes the next frame of any of its slots; a slot's samples depend on nothing but its own frames.

    width: how many slots a step decodes in the time of one.
    """

    width: int

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """From slot → codes of its next frame to slot → samples [samples_per_frame]; other slots stay as they are."""


def slot_decoder(decoder: StreamingDecoder, slot_count: int) -> SlotDecoder:
    """The kind that fits the decoder's device."""
    kind = GraphedSlots if decoder.latents.device.type == "cuda" else RunsOfSlots
    return kind(decoder, slot_count)


class RunsOfSlots:
    """Neighbouring slots that have a frame are decoded together, for a CPU: what has none costs nothing."""

    def __init__(self, decoder: StreamingDecoder, slot_count: int) -> None:
        self.width = min(slot_count, _MOST_AT_ONCE)
        self._decoder = decoder
        self._state = decoder.new_state(slot_count)
        self._longest_run = self.width if decoder.slots_are_alike() else 1
        self._views: dict[tuple[int, int], DecodeState] = {}

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""
        self._view(slot, slot + 1).reset(torch.ones(1, dtype=torch.bool))

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Decodes a frame of each of these slots."""
        decoded: dict[int, NDArray[np.float32]] = {}
        with exact_float32():
            for first, end in _runs(sorted(frames), self._longest_run):
                codes = torch.tensor([frames[slot] for slot in range(first, end)])
                samples = self._decoder.decode_step(self._view(first, end), codes, None).numpy()
                decoded.update(zip(range(first, end), samples, strict=True))
        return decoded

    def _view(self, first: int, end: int) -> DecodeState:
        if (first, end) not in self._views:
            self._views[first, end] = self._state.slots(first, end)
        return self._views[first, end]


def _runs(slots: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Ascending slots as runs of neighbours: the first, and the one after the last."""
    for _, run in groupby(enumerate(slots), key=lambda entry: entry[1] - entry[0]):
        members = [slot for _, slot in run]
        for start in range(0, len(members), longest):
            part = members[start : start + longest]
            yield part[0], part[-1] + 1


class GraphedSlots:
    """All slots in one captured CUDA graph: one launch, one copy in each direction for each input and output."""

    def __init__(self, decoder: StreamingDecoder, slot_count: int) -> None:
        self.width = slot_count
        self._device = decoder.latents.device
        self._state = decoder.new_state(slot_count)
        self._codes = Mirror((slot_count, decoder.codebook_count), torch.int64, self._device)
        self._executed = Mirror((slot_count,), torch.bool, self._device)
        self._samples = Mirror((slot_count, decoder.samples_per_frame), torch.float32, self._device)
        capture: Capture[Tensor] | None = graph_capture(self._device)
        self._ladder: StepLadder[None, Tensor] = StepLadder(
            lambda _: decoder.decode_step(self._state, self._codes.tensor, self._executed.tensor), capture
        )
        with exact_float32():  # no slot executes, so the state stays new
            self._ladder.prepare([None])

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""
        with exact_float32():
            self._state.reset(torch.arange(self.width, device=self._device) == slot)

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Decodes a frame of each of these slots."""
        self._executed.host.fill(False)
        for slot, frame in frames.items():
            self._codes.host[slot], self._executed.host[slot] = frame, True
        with exact_float32():
            self._codes.send()
            self._executed.send()
            self._samples.fetch(self._ladder.step(None))
            synchronize(self._device)
        return {slot: self._samples.host[slot].copy() for slot in frames}
