"""Work that threads share in compiled code: whoever is free takes the next part, and one that comes late finds less.

The work is phases, in an order that all threads know. Each has so many units, of rows or of blocks of outputs, which
are taken in parts; nobody goes on to the next phase before all units of this one are finished.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from services.inference.cpu.compilation import compiled, generator
from services.inference.cpu.vectors import intrinsic

Ints = NDArray[np.int64]

PARTS = 16
"""Of a phase: many, so that threads are done with it at nearly the same time."""


_LOOKS = 200_000
"""At what another thread has finished, until it is taken for one that waits for a core: some 0.1 ms."""


class Team(NamedTuple):
    """What the threads know of each other: parts of each phase that were taken, and units of it that are finished.

    parts: into how many each phase is cut; 1 for a thread that works alone. from_end: this thread takes the last part
    first, so that two share the phase in halves, and each finds in its core's cache what only its own half reads.
    """

    taken: Ints
    finished: Ints
    parts: int
    from_end: bool


def team(phases: int) -> Team:
    """A team that has done nothing yet."""
    return Team(np.zeros(phases, np.int64), np.zeros(phases, np.int64), PARTS, False)


@compiled
def alone(phases: int) -> Team:
    """A team of one thread."""
    return Team(np.zeros(phases, np.int64), np.zeros(phases, np.int64), 1, False)


@generator
def parts(team: Team, phase: int, units: int) -> Iterator[tuple[int, int]]:
    """A phase of so many units: the parts that this thread gets, each as its first unit and the one after its last.

    What a thread has written for a part, all see once they have left the phase.
    """
    size = max(1, -(-units // team.parts))
    count, own = -(-units // size), 0
    # As many as all threads have taken: those from the one end never meet those from the other.
    while _add(team.taken, phase, 1) < count:
        first = (count - 1 - own if team.from_end else own) * size
        end = min(first + size, units)
        yield first, end
        _add(team.finished, phase, end - first)
        own += 1
    looks = 0
    while _read(team.finished, phase) < units:
        looks += 1
        if looks > _LOOKS:
            _give_way()


def _place(context: Any, builder: Any, kind: types.Array, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def _add(_context: Any, array: Any, _index: Any, _number: Any) -> Any:
    """Adds to a number of an array of int64, as no other thread sees it halfway → what it was before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _place(context, builder, signature.args[0], *values[:2])
        return builder.atomic_rmw("add", place, values[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def _read(_context: Any, array: Any, _index: Any) -> Any:
    """A number of an array of int64, as the thread that wrote it last left it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _place(context, builder, signature.args[0], *values)
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _give_way(_context: Any) -> Any:
    """Lets another thread run that waits for this core."""

    def generate(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate
