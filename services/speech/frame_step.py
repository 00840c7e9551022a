"""The frame step: host values in, the codes of every slot's next frame out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from services.inference.batch_rows import batch_rows
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize
from services.inference.prefill import Chunk
from services.inference.sampling import Draw, ranked_count
from services.speech.model import FrameInputs, SpeechModel


@dataclass(frozen=True)
class FrameRung:
    """A shape of the frame step: slots, how far they look back, whether a step is fed, how many logits are ranked."""

    slots: int
    reach: int
    any_step: bool
    ranked: int


class FrameStep:
    """Backbone, codebook 0, depth decoder and the next input's embedding for all slots: one launch on CUDA.

    The host fills the rows of the slots that take part between `begin` and `run`; all other rows sit out.
    """

    def __init__(self, model: SpeechModel, *, slot_count: int, context_length: int) -> None:
        self.model = model
        self.slot_count = slot_count
        self.cache = model.backbone.stack.cache(slots=slot_count, positions=context_length)
        self.depth_cache = model.depth_decoder.cache(slot_count)
        config, device = model.config, model.device
        row_count = batch_rows(slot_count, device)
        self.previous = Mirror((row_count, config.codebook_count), torch.int64, device)
        self.hidden = Mirror((row_count, config.backbone.hidden_size), torch.float32, device)
        self.token = Mirror((row_count,), torch.int64, device)
        self.has_step = Mirror((row_count,), torch.bool, device)
        self.columns = Mirror((slot_count, 3), torch.int64, device)
        self.frame = Mirror((row_count,), torch.int64, device)
        self.temperature = Mirror((row_count,), torch.float32, device)
        self.top_k = Mirror((row_count,), torch.int64, device)
        self.seed = Mirror((row_count,), torch.int64, device)
        self._codes = Mirror((row_count, config.codebook_count), torch.int64, device)
        capture: Capture[torch.Tensor] | None = graph_capture(device)
        self._ladder = StepLadder(self._frames, capture)
        self._is_graphed = capture is not None
        self._drawing: Sequence[int] | None = None

    def begin(self) -> None:
        """Lets every row sit out."""
        self.columns.host.fill(self.cache.dump)
        self.has_step.host.fill(False)

    def warm(self) -> None:
        """Makes the first callers' steps as fast as all others; what the slots hold is left as it is."""
        self.begin()
        self._send()
        self._drawing = None
        self._ladder.prepare(self._rungs())
        synchronize(self.model.device)

    def run(self, slots: Sequence[int], *, highest: int, any_step: bool, largest_top_k: int | None) -> NDArray[Any]:
        """The codes of every slot's next frame, [rows, codebooks], until the next run; they count for `slots`.

        highest: the highest column of them; largest_top_k: of those that draw, 0 being all and None that none does.
        """
        self._send()
        ranked = 0 if largest_top_k is None else ranked_count(largest_top_k, self.model.config.code_count)
        reach = self.cache.reach(highest)
        if self._is_graphed:
            self._drawing = None
            rung = FrameRung(self.slot_count, reach, True, ranked)
        else:
            # What no graph has fixed costs no more than is needed: rows up to the last that counts, draws for those.
            count = max(slots) + 1
            self._drawing = slots if len(slots) < batch_rows(count, self.model.device) else None
            rung = FrameRung(count, reach, any_step, ranked)
        codes = self._ladder.step(rung)
        self._codes.fetch(codes)
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
        rows = slice(batch_rows(rung.slots, self.model.device))
        how = Draw(self.temperature.tensor[rows], self.top_k.tensor[rows], self.seed.tensor[rows], rung.ranked)
        frame = self.frame.tensor[rows]
        if self._drawing is not None:
            drawing = torch.tensor(self._drawing, device=frame.device)
            how, frame = how.of_rows(drawing), frame[drawing]
        inputs = FrameInputs(
            self.previous.tensor[rows], self.hidden.tensor[rows], self.token.tensor[rows], self.has_step.tensor[rows],
            self.columns.tensor[: rung.slots], frame, how,
        )  # fmt: skip
        cache, depth_cache = self.cache.rows(rung.slots), self.depth_cache.rows(rung.slots)
        return self.model.next_frames(inputs, cache, depth_cache, rung.reach, any_step=rung.any_step)

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
                yield FrameRung(self.slot_count, reach, True, ranked)
