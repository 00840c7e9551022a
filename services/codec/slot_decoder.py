"""The streaming decode of all slots with host values on both sides: once for a CPU, once for a GPU."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.codec.mimi import StreamingDecoder, exact_float32
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize


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
    kind = GraphedSlots if decoder.latents.device.type == "cuda" else SeparateSlots
    return kind(decoder, slot_count)


class SeparateSlots:
    """Each slot a batch of its own, for a CPU.

    A CPU's kernels round differently where rows are split among threads or the last elements don't fill a vector
    register, so a row of a batch would depend on its place and on the number of rows. It also costs nothing for the
    slots that have no frame.
    """

    def __init__(self, decoder: StreamingDecoder, slot_count: int) -> None:
        self.width = 1
        self._decoder = decoder
        self._states = [decoder.new_state(1) for _ in range(slot_count)]
        self._all = torch.ones(1, dtype=torch.bool)

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""
        self._states[slot].reset(self._all)

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Decodes a frame of each of these slots."""
        decoded = {}
        with exact_float32():
            for slot, codes in frames.items():
                samples = self._decoder.decode_step(self._states[slot], torch.tensor([codes]), self._all)
                decoded[slot] = samples[0].numpy()
        return decoded


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
