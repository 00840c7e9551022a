"""The token step in compiled code: embeddings, language model and the most likely token in one call."""

from typing import NamedTuple

import numpy as np

from services.inference.cpu import stack
from services.inference.cpu.aligned import Floats, aligned_empty, aligned_zeros
from services.inference.cpu.compilation import compiled
from services.inference.cpu.draw import first_highest
from services.inference.cpu.product import in_blocks, multiply
from services.inference.cpu.stack import StackCache
from services.inference.cpu.team import Ints


class Vocabulary(NamedTuple):
    """embeddings [tokens, hidden]; head and bias as `multiply` reads them."""

    embeddings: Floats
    head: Floats
    bias: Floats


@compiled
def next_tokens(
    slots: Ints, tokens: Ints, columns: Ints, model: StackCache, vocabulary: Vocabulary, states: Floats, following: Ints
) -> None:
    """Runs a token of each of these slots.

    tokens, columns [slots]: what is run and where it goes. states [slots, hidden], following [slots]: the slots' rows
    are filled with the state after the final norm, and with the most likely next token, the first of equals.
    """
    count, hidden, size = len(slots), model.shape.hidden, len(vocabulary.embeddings)
    width, logit_width = in_blocks(hidden), in_blocks(size)
    x, places, all_rows = aligned_zeros(count * width), np.empty(count, np.int64), np.empty(count, np.int64)
    for index in range(count):
        places[index], all_rows[index] = columns[slots[index]], index
        for k in range(hidden):
            x[index * width + k] = vocabulary.embeddings[tokens[slots[index]], k]
    stack.run(
        x, slots, places, places, all_rows,
        model.entries, model.slots, model.columns, model.shape, model.weights, model.turns,
    )  # fmt: skip
    logits = aligned_empty(count * logit_width)
    multiply(
        x, 0, width, count, hidden, vocabulary.head, 0, vocabulary.bias, 0, size, logits, 0, logit_width, False,
    )  # fmt: skip
    for index in range(count):
        for k in range(hidden):
            states[slots[index], k] = x[index * width + k]
        following[slots[index]] = first_highest(logits, index * logit_width, size)
