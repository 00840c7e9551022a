"""The token step: host values in, the next token and state of every slot out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.inference.device import is_compiled_for
from services.inference.graphs import Capture, Mirror, StepLadder, graph_capture, synchronize
from services.reasoner.model import ReasonerModel


@dataclass(frozen=True)
class TokenRung:
    """A shape of the token step: slots, and how far they look back."""

    slots: int
    reach: int


class TokenStep:
    """The language model's step for all slots: one launch on CUDA, one call of compiled code on a CPU.

    The host fills the rows of the slots that take part between `begin` and `run`; all other rows sit out.
    """

    def __init__(self, model: ReasonerModel, *, slot_count: int, context_length: int) -> None:
        self.model = model
        self.slot_count = slot_count
        self.cache = model.stack.cache(slots=slot_count, positions=context_length)
        device = model.device
        self.token = Mirror((slot_count,), torch.int64, device)
        self.column = Mirror((slot_count,), torch.int64, device)
        self._hidden = Mirror((slot_count, model.config.stack.hidden_size), torch.float32, device)
        self._next_token = Mirror((slot_count,), torch.int64, device)
        capture: Capture[tuple[Tensor, Tensor]] | None = graph_capture(device)
        self._ladder = StepLadder(self._decode, capture)
        self._is_graphed = capture is not None
        self._compiled = _Compiled(self) if is_compiled_for(device, model.embed_tokens.weight.dtype) else None

    def begin(self) -> None:
        """Lets every row sit out."""
        self.column.host.fill(self.cache.dump)

    def warm(self) -> None:
        """Makes the first callers' steps as fast as all others; what the slots hold is left as it is."""
        self.begin()
        if self._compiled is not None:
            self.column.host[0] = 0
            kept = self.cache.read(0, 1)
            self._compiled.run([0])
            self.cache.write(0, kept)
            return
        self._send()
        self._ladder.prepare(TokenRung(self.slot_count, reach) for reach in self.cache.reaches())
        synchronize(self.model.device)

    def run(self, slots: Sequence[int], *, highest: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """States [rows, hidden] float32 and next tokens [rows] of every slot, until the next run.

        They count for `slots`, of which `highest` is the highest column.
        """
        if self._compiled is not None:
            self._compiled.run(slots)
            return self._hidden.host, self._next_token.host
        self._send()
        # What no graph has fixed costs no more than is needed: rows up to the last that counts.
        count = self.slot_count if self._is_graphed else max(slots) + 1
        hidden, following = self._ladder.step(TokenRung(count, self.cache.reach(highest)))
        self._hidden.fetch(hidden)
        self._next_token.fetch(following)
        synchronize(self.model.device)
        return self._hidden.host, self._next_token.host

    def _decode(self, rung: TokenRung) -> tuple[Tensor, Tensor]:
        rows = slice(rung.slots)
        hidden, following = self.model.decode(
            self.token.tensor[rows], self.column.tensor[rows], self.cache.rows(rung.slots), rung.reach
        )
        return hidden.float(), following

    def _send(self) -> None:
        self.token.send()
        self.column.send()


class _Compiled:
    """The step in compiled code, on the mirrors' own memory; slots that sit out cost nothing."""

    def __init__(self, step: TokenStep) -> None:
        from services.reasoner.compiled_token import Vocabulary, next_tokens  # not needed for a GPU

        model = step.model
        stack, head = model.stack.compiled, model.lm_head.compiled
        assert stack is not None
        assert head is not None
        self._next_tokens = next_tokens
        self._parts = (
            step.token.host, step.column.host,
            stack.with_cache(step.cache),
            Vocabulary(model.embed_tokens.weight.detach().numpy(), head.weight, head.bias),
            step._hidden.host, step._next_token.host,
        )  # fmt: skip

    def run(self, slots: Sequence[int]) -> None:
        """Fills the slots' rows of states and next tokens."""
        self._next_tokens(np.array(slots), *self._parts)
