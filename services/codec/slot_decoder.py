"""The streaming decode of all slots with host values on both sides: once for a CPU, once for a GPU."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.codec.mimi import StreamingDecoder, exact_float32


class SlotDecoder(Protocol):
    """Decodes the next frame of any of its slots; a slot's samples depend on nothing but its own frames."""

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
        device = decoder.latents.device
        self._state = decoder.new_state(slot_count)
        self._host_codes = torch.zeros(slot_count, decoder.codebook_count, dtype=torch.int64).pin_memory()
        self._host_executed = torch.zeros(slot_count, dtype=torch.bool).pin_memory()
        self._host_samples = torch.zeros(slot_count, decoder.samples_per_frame).pin_memory()
        self._codes = self._host_codes.to(device)
        self._executed = self._host_executed.to(device)
        self._graph = torch.cuda.CUDAGraph()
        with exact_float32():
            self._samples = self._capture(decoder)

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""
        with exact_float32():
            self._state.reset(torch.arange(len(self._codes), device=self._codes.device) == slot)

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Decodes a frame of each of these slots."""
        codes, executed = self._host_codes.numpy(), self._host_executed.numpy()
        executed.fill(False)
        for slot, frame in frames.items():
            codes[slot], executed[slot] = frame, True
        with exact_float32():
            self._codes.copy_(self._host_codes, non_blocking=True)
            self._executed.copy_(self._host_executed, non_blocking=True)
            self._graph.replay()
            self._host_samples.copy_(self._samples, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        return {slot: self._host_samples[slot].numpy().copy() for slot in frames}

    def _capture(self, decoder: StreamingDecoder) -> Tensor:
        # Libraries set themselves up at first use, which can't be captured. No slot executes, so the state stays new.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                decoder.decode_step(self._state, self._codes, self._executed)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self._graph):
            return decoder.decode_step(self._state, self._codes, self._executed)
