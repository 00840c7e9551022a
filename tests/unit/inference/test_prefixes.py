"""Which slot holds how a prompt begins."""

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.prefixes import KeptPrefixes, identities

PROMPTS = st.lists(st.integers(-2, 2), max_size=6)


def common(one: list[int], other: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@given(kept=st.lists(PROMPTS, min_size=1, max_size=5), prompt=PROMPTS)
def test_the_longest_common_prefix_is_found_in_a_slot_that_has_it(kept: list[list[int]], prompt: list[int]) -> None:
    prefixes = KeptPrefixes(len(kept))
    for slot, other in enumerate(kept):
        prefixes.keep(slot, identities(other))
    slot, length = prefixes.longest(identities(prompt))
    assert length == common(kept[slot], prompt) == max(common(other, prompt) for other in kept)


@given(kept=st.lists(PROMPTS, min_size=2, max_size=4), forgotten=st.integers(0, 3), prompt=PROMPTS)
def test_what_is_forgotten_or_kept_anew_is_not_found(kept: list[list[int]], forgotten: int, prompt: list[int]) -> None:
    gone = forgotten % len(kept)
    prefixes = KeptPrefixes(len(kept))
    for slot, other in enumerate(kept):
        prefixes.keep(slot, identities(other))
    prefixes.forget(gone)
    others = [other for slot, other in enumerate(kept) if slot != gone]
    assert prefixes.longest(identities(prompt))[1] == max(common(other, prompt) for other in others)
    prefixes.keep(gone, identities([9, 9]))
    assert prefixes.longest(identities([9, 9, *prompt])) == (gone, 2)


def test_nothing_is_found_where_nothing_is_kept() -> None:
    assert KeptPrefixes(3).longest(identities([1, 2]))[1] == 0


@pytest.mark.parametrize("token_ids", [[], [0], [5, 0, 151_643]])
def test_tokens_are_their_own_identities(token_ids: list[int]) -> None:
    found = identities(token_ids)
    assert (found.tolist(), found.dtype) == (token_ids, np.int64)
