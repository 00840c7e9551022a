"""How a code is drawn from logits, in compiled code: the law of `services.inference.sampling`, a row at a time."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.product import Floats
from services.inference.cpu.vectors import LANES, count_at_least, load, splat

Hashes = NDArray[np.int32]


@compiled
def draw(
    logits: Floats, first: int, count: int, temperature: float, top_k: int, row: int, places: Hashes, place: int
) -> int:
    """A code from the `count` logits from `first` on; row: `row_hash`; places: `GumbelNoise.places`, flat, from place.

    The first of equals, as everywhere.
    """
    if temperature == 0:
        best = 0
        for code in range(1, count):
            if logits[first + code] > logits[first + best]:
                best = code
        return best
    least = _least_kept(logits, first, count, top_k)
    best, highest = 0, -np.inf
    for code in range(count):
        logit = logits[first + code]
        if logit >= least:
            value = logit + temperature * _gumbel(row, places[place + code])
            if value > highest:
                best, highest = code, value
    return best


@compiled
def row_hash(seed: int, frame: int) -> int:
    """What all of a frame's noise has in common."""
    return _mix(_mix(_low(seed)) ^ _mix(_mix(_low(seed >> 32)) ^ _mix(_mix(_low(frame)))))


@compiled
def _least_kept(logits: Floats, first: int, count: int, top_k: int) -> Any:
    """The top_k-th largest logit; minus infinity where top_k is 0 or everything.

    Halves the range of all floats in which it can be: their bits, read as integers, are in the floats' own order.
    """
    if top_k == 0 or top_k >= count:
        return np.float32(-np.inf)
    low, high = _key(np.float32(-np.inf)), _key(np.float32(np.inf))
    while low < high:
        middle = (low + high + 1) >> 1
        if _count_at_least(logits, first, count, _float(middle)) >= top_k:
            low = middle
        else:
            high = middle - 1
    return _float(low)


@inlined
def _count_at_least(logits: Floats, first: int, count: int, least: float) -> int:
    found, whole, edge = 0, count - count % LANES, splat(least)
    for code in range(0, whole, LANES):
        found += count_at_least(load(logits, first + code), edge)
    for code in range(whole, count):
        found += logits[first + code] >= least
    return found


@inlined
def _key(value: Any) -> Any:
    """A whole number that is the greater the greater the float32 is."""
    bits = np.float32(value).view(np.int32)
    return np.int64(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@inlined
def _float(key: int) -> Any:
    """The float32 of a key."""
    return np.int32(key ^ ((key >> 31) & 0x7FFFFFFF)).view(np.float32)


@inlined
def _gumbel(row: int, place: int) -> float:
    bits = _low(_low(place ^ row) * 0x7FEB352D)
    bits = _low((bits ^ (bits >> 15)) * 0x846CA68B)
    uniform = np.float32(((bits >> 9) + 0.5) / (1 << 23))
    return -math.log(-math.log(uniform))


@inlined
def _mix(x: int) -> int:
    x ^= x >> 16
    x = _low(x * 0x7FEB352D)
    x ^= x >> 15
    x = _low(x * 0x846CA68B)
    return x ^ (x >> 16)


@inlined
def _low(x: int) -> int:
    """The low 32 bits, as a number from 0 on."""
    return x & 0xFFFFFFFF
