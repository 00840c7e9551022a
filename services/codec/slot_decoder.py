"""The streaming decode of all slots with host values on both sides: once for a CPU, once for a GPU."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.codec.streaming_decoder import StreamingDecoder, exact_float32
from services.inference.device import is_compiled_for
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize

Codes = Sequence[int]
Samples = NDArray[np.float32]

# A round of more would keep the listener waiting whose sound is due first.
_MOST_AT_ONCE = 8


class SlotDecoder(Protocol):
    """Decodes the next frames of any of its slots; a slot's samples depend on nothing but its own frames.

    width: how many frames a round should have at most, so that the one that is due first does not wait for all others.
    run: how many of them of one slot, which cost less together where weights are then read once.
    """

    width: int
    run: int

    def reset(self, slot: int) -> None:
        """Makes a slot as new."""

    def step(self, frames: Mapping[int, Sequence[Codes]]) -> dict[int, list[Samples]]:
        """From slot → codes of its next frames to slot → samples [samples_per_frame] of each; other slots stay."""


def slot_decoder(decoder: StreamingDecoder, slot_count: int) -> SlotDecoder:
    """The kind that fits the decoder's device."""
    latents = decoder.latents
    kind = CompiledSlots if is_compiled_for(latents.device, latents.dtype) else GraphedSlots
    return kind(decoder, slot_count)


class CompiledSlots:
    """Frames of any slots in one call of compiled code, for a CPU: what has no frame costs nothing."""

    width = run = _MOST_AT_ONCE

    def __init__(self, decoder: StreamingDecoder, slot_count: int) -> None:
        from services.codec.compiled_layers import State, decode  # a GPU's machine needs no compiler
        from services.codec.compiled_weights import compiled_weights, signals

        self._decode = decode
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

    def step(self, frames: Mapping[int, Sequence[Codes]]) -> dict[int, list[Samples]]:
        """Decodes these frames of each of the slots."""
        rows = [(slot, codes) for slot, following in frames.items() for codes in following]
        decoded: dict[int, list[Samples]] = {slot: [] for slot in frames}
        for start in range(0, len(rows), self.width):
            slots, codes = zip(*rows[start : start + self.width], strict=True)
            self._decode(np.array(slots), np.array(codes), self._weights, self._numbers, self._signals)
            samples = self._signals.signal[: len(slots), : self._samples_per_frame].copy()
            for slot, sound in zip(slots, samples, strict=True):
                decoded[slot].append(sound)
        return decoded


class GraphedSlots:
    """All slots in one captured CUDA graph: one launch, one copy in each direction for each input and output."""

    run = 1

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

    def step(self, frames: Mapping[int, Sequence[Codes]]) -> dict[int, list[Samples]]:
        """Decodes these frames of each of the slots; where a slot has several, in as many launches."""
        decoded: dict[int, list[Samples]] = {slot: [] for slot in frames}
        for index in range(max(map(len, frames.values()), default=0)):
            self._launch({slot: following[index] for slot, following in frames.items() if index < len(following)})
            for slot, following in frames.items():
                if index < len(following):
                    decoded[slot].append(self._samples.host[slot].copy())
        return decoded

    def _launch(self, frames: Mapping[int, Codes]) -> None:
        """Decodes a frame of each of these slots into their rows of the samples."""
        self._executed.host.fill(False)
        for slot, frame in frames.items():
            self._codes.host[slot], self._executed.host[slot] = frame, True
        with exact_float32():
            self._codes.send()
            self._executed.send()
            self._samples.fetch(self._ladder.step(None))
            synchronize(self._device)
