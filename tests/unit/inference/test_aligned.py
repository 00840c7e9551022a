import numpy as np
import pytest

from services.inference.cpu.aligned import LINE, aligned, aligned_empty, aligned_zeros
from services.inference.cpu.compilation import compiled
from services.inference.cpu.product import laid_out

COUNTS = (1, 15, 16, 17, 1000, 100_000, 1_000_003)


def begins_with_a_line(numbers: np.ndarray) -> bool:
    return numbers.ctypes.data % (LINE * numbers.itemsize) == 0


@pytest.mark.parametrize("count", COUNTS)
def test_arrays_begin_with_a_line(count: int) -> None:
    zeros, part = aligned_zeros(count), np.arange(count, dtype=np.float32)
    assert begins_with_a_line(aligned_empty(count))
    assert len(aligned_empty(count)) == count
    assert begins_with_a_line(zeros)
    assert zeros.shape == (count,)
    assert not zeros.any()
    copy = aligned([part, part[: count // 2]])
    assert begins_with_a_line(copy)
    assert np.array_equal(copy, np.concatenate((part, part[: count // 2])))
    assert not np.shares_memory(copy, part)


@compiled
def places_that_are_off(counts: np.ndarray) -> int:
    off = 0
    for count in counts:
        off += aligned_empty(count).ctypes.data % (4 * LINE) != 0
        off += aligned_zeros(count).ctypes.data % (4 * LINE) != 0
    return off


def test_compiled_code_gets_them_so_too() -> None:
    assert places_that_are_off(np.arange(1, 2000)) == 0


def test_weights_are_laid_out_so() -> None:
    assert begins_with_a_line(laid_out(np.ones((50, 300), np.float32)))
