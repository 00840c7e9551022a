"""What the slots of a cache still hold, to be found by how it begins."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Identities = NDArray[np.int64]


class KeptPrefixes:
    """The prompts whose keys and values lie in the slots, busy or free.

    A prompt is an identity for each position: equal identities, in order from the first, are equal inputs to the
    model. Only what was prefilled is kept here, not what was decoded after it: another prompt with the same tokens
    would prefill them, and a slot's bytes must not depend on which way they came.
    """

    def __init__(self, slot_count: int) -> None:
        self._prompts: list[Identities] = [np.empty(0, np.int64)] * slot_count

    def longest(self, prompt: Identities, preferred: int = 0) -> tuple[int, int]:
        """The slot with the longest common prefix, and that prefix' length; length 0 where there is none.

        Of slots that have as much in common it is the preferred one, if that is among them.
        """
        lengths = [common_length(kept, prompt) for kept in self._prompts]
        best = max(range(len(lengths)), key=lambda slot: (lengths[slot], slot == preferred))
        return best, lengths[best]

    def keep(self, slot: int, prompt: Identities) -> None:
        """Says what a slot holds, from its first column on."""
        self._prompts[slot] = prompt

    def forget(self, slot: int) -> None:
        """Says that nothing that a slot holds may be used."""
        self._prompts[slot] = np.empty(0, np.int64)


def identities(token_ids: Sequence[int]) -> Identities:
    """Positions that are tokens: each is its token. Other inputs are given numbers that are no tokens."""
    return np.asarray(token_ids, np.int64)


def common_length(one: Identities, other: Identities) -> int:
    """How many positions two prompts begin with alike."""
    count = min(len(one), len(other))
    differing = np.flatnonzero(one[:count] != other[:count])
    return int(differing[0]) if len(differing) else count
