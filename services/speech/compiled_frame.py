"""The frame step in compiled code: backbone, codebook 0, depth decoder and the embeddings between them in one call."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu import stack
from services.inference.cpu.aligned import Floats, aligned, aligned_empty, aligned_zeros
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.draw import Hashes, draw, row_hash
from services.inference.cpu.product import in_blocks, laid_out, multiply
from services.inference.cpu.stack import StackCache
from services.inference.cpu.team import Ints
from services.speech.model import NO_CODE, SpeechModel


class Tables(NamedTuple):
    """What the step looks up or multiplies with besides the stacks; the products `laid_out`, heads one after another.

    codes: the embeddings, of `logits` rows for each codebook; places: `GumbelNoise.places`.
    """

    codebooks: int
    logits: int
    drawn: int
    offset: int
    texts: Floats
    codes: Floats
    head0: Floats
    projection: Floats
    heads: Floats
    zeros: Floats
    places: Hashes


class Wishes(NamedTuple):
    """What the host asks for, a row for each slot: the mirrors of `FrameStep`."""

    previous: Ints
    hidden: Floats
    token: Ints
    has_step: NDArray[np.bool_]
    columns: Ints
    frame: Ints
    temperature: Floats
    top_k: Ints
    seed: Ints


def tables(model: SpeechModel) -> Tables:
    """Those of a model on a CPU in float32."""
    config, depth = model.config, model.depth_decoder
    heads = [head[:, : config.code_count].t().contiguous() for head in depth.codebook_head.detach()]
    widest = max(config.code_count, config.depth_decoder.hidden_size)
    return Tables(
        codebooks=config.codebook_count,
        logits=config.logit_count,
        drawn=config.code_count,
        offset=depth.offset,
        texts=model.text_embedding.weight.detach().numpy(),
        codes=model.code_embedding.weight.detach().numpy(),
        head0=laid_out(model.backbone.codebook0_head.weight.detach()[: config.code_count].numpy()),
        projection=laid_out(depth.projection.weight.detach().numpy()),
        heads=aligned([laid_out(head.numpy()) for head in heads]),
        zeros=aligned_zeros(in_blocks(widest)),
        places=model.noise.places.numpy().reshape(-1),
    )


@compiled
def next_frames(
    slots: Ints, wishes: Wishes, backbone: StackCache, depth: StackCache, tables: Tables, codes: Ints
) -> None:
    """The next frame of these slots into their rows of codes [slots, codebooks]; NO_CODE where the state is not finite.

    A slot's positions are those of its three whose column is not the dump; the last is always there, and predicts.
    """
    count, width = len(slots), in_blocks(backbone.shape.hidden)
    states = _speak(slots, wishes, backbone, tables)
    rows = np.empty(count, np.int64)
    for index in range(count):
        rows[index] = row_hash(wishes.seed[slots[index]], wishes.frame[slots[index]])
    logit_width = in_blocks(tables.drawn)
    logits = aligned_empty(count * logit_width)
    multiply(
        states, 0, width, count, backbone.shape.hidden, tables.head0, 0, tables.zeros, 0, tables.drawn,
        logits, 0, logit_width, False,
    )  # fmt: skip
    _draw(slots, wishes, tables, logits, logit_width, rows, 0, codes)
    head_size = logit_width * depth.shape.hidden
    # The backbone's state goes in beside the first code, all other codes alone.
    inputs = aligned_zeros(2 * count * width)
    for codebook in range(1, tables.codebooks):
        run = 2 if codebook == 1 else 1
        for index in range(count):
            at, state = (run * index + run - 1) * width, index * width
            code = codes[slots[index], codebook - 1] + (codebook - 1) * tables.logits
            for k in range(backbone.shape.hidden):
                inputs[at + k] = tables.codes[code, k]
                if run == 2:
                    inputs[at - width + k] = states[state + k]
        hidden = _decode(slots, inputs, run, codebook, depth, backbone.shape.hidden, width, tables)
        depth_width = in_blocks(depth.shape.hidden)
        multiply(
            hidden, 0, depth_width, count, depth.shape.hidden,
            tables.heads, (codebook - 1) * head_size, tables.zeros, 0, tables.drawn, logits, 0, logit_width, False,
        )  # fmt: skip
        _draw(slots, wishes, tables, logits, logit_width, rows, codebook, codes)
    for index in range(count):
        is_finite = True
        for k in range(index * width, (index + 1) * width):
            is_finite &= math.isfinite(states[k])
        if not is_finite:
            for codebook in range(tables.codebooks):
                codes[slots[index], codebook] = NO_CODE


@inlined
def _speak(slots: Ints, wishes: Wishes, backbone: StackCache, tables: Tables) -> Floats:
    """Runs the new positions of the slots → the backbone's state at the last one of each, in whole blocks."""
    count, hidden, width = len(slots), backbone.shape.hidden, in_blocks(backbone.shape.hidden)
    dump = backbone.columns - 1
    x = aligned_zeros(3 * count * width)
    row_slots, columns, last = np.empty(3 * count, np.int64), np.empty(3 * count, np.int64), np.empty(count, np.int64)
    rows = 0
    for index in range(count):
        slot = slots[index]
        for place in range(3):
            if wishes.columns[slot, place] == dump:
                continue
            at, token = rows * width, wishes.token[slot]
            if place == 1:
                for k in range(hidden):
                    x[at + k] = wishes.hidden[slot, k]
            elif place == 2 and wishes.has_step[slot]:
                for k in range(hidden):
                    x[at + k] = tables.texts[token, k]
            else:
                for codebook in range(tables.codebooks):
                    code = wishes.previous[slot, codebook] + codebook * tables.logits
                    for k in range(hidden):
                        x[at + k] += tables.codes[code, k]
            row_slots[rows], columns[rows] = slot, wishes.columns[slot, place]
            rows += 1
        last[index] = rows - 1
    stack.run(
        x, row_slots[:rows], columns[:rows], columns[:rows], last,
        backbone.entries, backbone.slots, backbone.columns, backbone.shape, backbone.weights, backbone.turns,
    )  # fmt: skip
    return x[: count * width]


@inlined
def _decode(
    slots: Ints, inputs: Floats, run: int, codebook: int, depth: StackCache, input_size: int, width: int, tables: Tables
) -> Floats:
    """Runs the depth decoder over `run` inputs of each slot, in rows of `width` → its state at the last of each."""
    count, depth_width = run * len(slots), in_blocks(depth.shape.hidden)
    x = aligned_empty(count * depth_width)
    multiply(
        inputs, 0, width, count, input_size, tables.projection, 0, tables.zeros, 0, depth.shape.hidden,
        x, 0, depth_width, False,
    )  # fmt: skip
    row_slots, columns, positions = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    last = np.empty(len(slots), np.int64)
    for row in range(count):
        # The state stands in column 0, code c in column c + 1.
        column = codebook + 1 - run + row % run
        row_slots[row], columns[row], positions[row] = slots[row // run], column, max(column - tables.offset, 0)
        last[row // run] = row
    stack.run(
        x, row_slots, columns, positions, last,
        depth.entries, depth.slots, depth.columns, depth.shape, depth.weights, depth.turns,
    )  # fmt: skip
    return x


@inlined
def _draw(
    slots: Ints, wishes: Wishes, tables: Tables, logits: Floats, width: int, rows: Ints, codebook: int, codes: Ints
) -> None:
    for index in range(len(slots)):
        slot = slots[index]
        codes[slot, codebook] = draw(
            logits, index * width, tables.drawn, wishes.temperature[slot], wishes.top_k[slot], rows[index],
            tables.places, codebook * tables.drawn,
        )  # fmt: skip
