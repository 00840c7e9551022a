"""The streaming decode of all slots with host values on both sides: once for a CPU, once for a GPU."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.codec.mimi import StreamingDecoder, exact_float32
from services.inference.device import is_compiled_for
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize

# A round of more would keep the listener waiting whose sound is due first.
_MOST_AT_ONCE = 8


class SlotDecoder(Protocol):
    """Decodes the next frame of any of its slots; a slot's samples depend on nothing but its own frames.

    width: how many slots a round should have at most, so that the one that is due first does not wait for all others.
    """

    width: int

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """From slot → codes of its next frame to slot → samples [samples_per_frame]; other slots stay as they are."""


def slot_decoder(decoder: StreamingDecoder, slot_count: int) -> SlotDecoder:
    """The kind that fits the decoder's device."""
    latents = decoder.latents
    kind = CompiledSlots if is_compiled_for(latents.device, latents.dtype) else GraphedSlots
    return kind(decoder, slot_count)


class CompiledSlots:
    """Any slots in one call of compiled code, for a CPU: what has no frame costs nothing."""

    def __init__(self, decoder: StreamingDecoder, slot_count: int) -> None:
        from services.codec.compiled_layers import State, decode  # a GPU's machine needs no compiler
        from services.codec.compiled_weights import compiled_weights, signals

        self._decode = decode
        self.width = min(slot_count, _MOST_AT_ONCE)
        self._samples_per_frame = decoder.samples_per_frame
        self._weights = compiled_weights(decoder)
        self._signals = signals(self._weights, self.width)
        self._state = decoder.new_state(slot_count)
        self._numbers = State(self._state.positions.numpy(), self._state.cache.numbers, self._state.edges.numpy())

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""
        # The cache's columns are written before they are read.
        self._numbers.positions[slot] = 0
        self._numbers.edges[slot] = 0.0

    def step(self, frames: Mapping[int, Sequence[int]]) -> dict[int, NDArray[np.float32]]:
        """Decodes a frame of each of these slots."""
        slots = list(frames)
        decoded: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(slots), self.width):
            together = slots[start : start + self.width]
            codes = np.array([frames[slot] for slot in together], np.int64)
            self._decode(np.array(together, np.int64), codes, self._weights, self._numbers, self._signals)
            samples = self._signals.signal[: len(together), : self._samples_per_frame].copy()
            decoded.update(zip(together, samples, strict=True))
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
