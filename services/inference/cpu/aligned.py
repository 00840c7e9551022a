"""Arrays that begin where a line of the processor's cache does.

A vector that lies across two lines is read in two steps, and in an array that begins elsewhere every vector does.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.compilation import compiled

Floats = NDArray[np.float32]

LINE = 16
"""Numbers of a line: 64 bytes."""


@compiled
def aligned_empty(count: int) -> Floats:
    """Room for `count` numbers."""
    numbers = np.empty(count + LINE, np.float32)
    begin = -(numbers.ctypes.data // numbers.itemsize) % LINE
    return numbers[begin : begin + count]


@compiled
def aligned_zeros(count: int) -> Floats:
    """`count` zeros."""
    numbers = aligned_empty(count)
    for k in range(count):
        numbers[k] = 0
    return numbers


def aligned(parts: Sequence[Floats]) -> Floats:
    """A copy of flat arrays, one behind the other."""
    numbers: Floats = np.concatenate(parts, out=aligned_empty(sum(map(len, parts))))
    return numbers
