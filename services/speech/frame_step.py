"""The frame step: host values in, the codes of every slot's next frame out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.inference.device import is_compiled_for
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize
from services.inference.prefill import Chunk
from services.inference.sampling import Draw, ranked_count
from services.speech.model import FrameInputs, SpeechModel


@dataclass(frozen=True)
class FrameRung:
    """A shape of the frame step: how far the slots look back, and how many logits are ranked."""

    reach: int
    ranked: int


class FrameStep:
    """Backbone, codebook 0, depth decoder and the next input's embedding for all slots: one launch on CUDA, one call of
    compiled code on a CPU.

    The host fills the rows of the slots that take part between `begin` and `run`; all other rows sit out.
    """

    def __init__(self, model: SpeechModel, *, slot_count: int, context_length: int) -> None:
        self.model = model
        self.slot_count = slot_count
        self.cache = model.backbone.stack.cache(slots=slot_count, positions=context_length)
        self.depth_cache = model.depth_decoder.cache(slot_count)
        config, device = model.config, model.device
        self.previous = Mirror((slot_count, config.codebook_count), torch.int64, device)
        self.hidden = Mirror((slot_count, config.backbone.hidden_size), torch.float32, device)
        self.token = Mirror((slot_count,), torch.int64, device)
        self.has_step = Mirror((slot_count,), torch.bool, device)
        self.columns = Mirror((slot_count, 3), torch.int64, device)
        self.frame = Mirror((slot_count,), torch.int64, device)
        self.temperature = Mirror((slot_count,), torch.float32, device)
        self.top_k = Mirror((slot_count,), torch.int64, device)
        self.seed = Mirror((slot_count,), torch.int64, device)
        self._codes = Mirror((slot_count, config.codebook_count), torch.int64, device)
        capture: Capture[torch.Tensor] | None = graph_capture(device)
        self._ladder = StepLadder(self._frames, capture)
        self._compiled = _Compiled(self) if is_compiled_for(device, model.dtype) else None

    def begin(self) -> None:
        """Lets every row sit out."""
        self.columns.host.fill(self.cache.dump)
        self.has_step.host.fill(False)

    def warm(self) -> None:
        """Makes the first callers' steps as fast as all others; what the slots hold is left as it is."""
        self.begin()
        if self._compiled is not None:
            self.columns.host[0, 2] = 0
            kept = self.cache.read(0, 1)
            self._compiled.run([0])
            self.cache.write(0, kept)
            return
        self._send()
        self._ladder.prepare(self._rungs())
        synchronize(self.model.device)

    def run(self, slots: Sequence[int], *, highest: int, largest_top_k: int | None) -> NDArray[Any]:
        """The codes of every slot's next frame, [slots, codebooks], until the next run; they count for `slots`.

        highest: the highest column of them; largest_top_k: of those that draw, 0 being all and None that none does.
        """
        if self._compiled is not None:
            self._compiled.run(slots)
            return self._codes.host
        self._send()
        ranked = 0 if largest_top_k is None else ranked_count(largest_top_k, self.model.config.code_count)
        self._codes.fetch(self._ladder.step(FrameRung(self.cache.reach(highest), ranked)))
        synchronize(self.model.device)
        return self._codes.host

    def prefill(self, chunk: Chunk, slot: int) -> None:
        """Runs a chunk of a voice prompt in one slot."""
        self.model.prefill(chunk, self.cache.slot(slot))

    def clear(self, slot: int) -> None:
        """Forgets all that a slot holds."""
        self.cache.slot(slot).clear()
        self.depth_cache.kv.slot(slot).clear()

    def _frames(self, rung: FrameRung) -> torch.Tensor:
        how = Draw(self.temperature.tensor, self.top_k.tensor, self.seed.tensor, rung.ranked)
        inputs = FrameInputs(
            self.previous.tensor, self.hidden.tensor, self.token.tensor, self.has_step.tensor,
            self.columns.tensor, self.frame.tensor, how,
        )  # fmt: skip
        return self.model.next_frames(inputs, self.cache, self.depth_cache, rung.reach)

    def _send(self) -> None:
        for mirror in (
            self.previous, self.hidden, self.token, self.has_step, self.columns,
            self.frame, self.temperature, self.top_k, self.seed,
        ):  # fmt: skip
            mirror.send()

    def _rungs(self) -> Iterator[FrameRung]:
        few, every = ranked_count(1, self.model.config.code_count), ranked_count(0, self.model.config.code_count)
        for reach in self.cache.reaches():
            for ranked in sorted({0, few, every}, reverse=True):
                yield FrameRung(reach, ranked)


class _Compiled:
    """The step in compiled code, on the mirrors' own memory; slots that sit out cost nothing."""

    def __init__(self, step: FrameStep) -> None:
        from services.speech.compiled_frame import Wishes, next_frames, tables  # not needed for a GPU

        model = step.model
        backbone, depth = model.backbone.stack.compiled, model.depth_decoder.stack.compiled
        assert backbone is not None
        assert depth is not None
        self._next_frames = next_frames
        self._parts = (
            Wishes(
                step.previous.host, step.hidden.host, step.token.host, step.has_step.host, step.columns.host,
                step.frame.host, step.temperature.host, step.top_k.host, step.seed.host,
            ),
            backbone.with_cache(step.cache),
            depth.with_cache(step.depth_cache.kv),
            tables(model),
            step._codes.host,
        )  # fmt: skip

    def run(self, slots: Sequence[int]) -> None:
        """Fills the slots' rows of the codes."""
        self._next_frames(np.array(slots), *self._parts)
