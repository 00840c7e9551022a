"""How a code is drawn from logits, in compiled code: the law of `services.inference.sampling`, a row at a time."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.aligned import Floats
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.vectors import LANES, count_at_least, greater, largest, load, splat, store

Hashes = NDArray[np.int32]


@compiled
def draw(
    logits: Floats, first: int, count: int, temperature: float, top_k: int, row: int, places: Hashes, place: int
) -> int:
    """A code from the `count` logits from `first` on; row: `row_hash`; places: `GumbelNoise.places`, flat, from place.

    The first of equals, as everywhere.
    """
    if temperature == 0:
        return first_highest(logits, first, count)
    codes, likely = np.empty(count, np.int64), np.empty(count + LANES, np.float32)
    keeps_all = top_k == 0 or top_k >= count
    edge = np.float32(-np.inf) if keeps_all else _low_edge(logits, first, count, top_k, likely)
    found = _find(logits, first, count, edge, codes, likely)
    if not keeps_all:
        edge = _edge(likely, found, top_k, edge)
    best, highest = 0, -np.inf
    for index in range(found):
        if likely[index] >= edge:
            value = likely[index] + temperature * _gumbel(row, places[place + codes[index]])
            if value > highest:
                best, highest = codes[index], value
    return best


@compiled
def row_hash(seed: int, frame: int) -> int:
    """What all of a frame's noise has in common."""
    return _mix(_mix(_low(seed)) ^ _mix(_mix(_low(seed >> 32)) ^ _mix(_mix(_low(frame)))))


@inlined
def first_highest(logits: Floats, first: int, count: int) -> int:
    """The code of the largest logit; 0 where none is a number."""
    highest, whole = splat(np.float32(-np.inf)), count - count % LANES
    for code in range(0, whole, LANES):
        highest = greater(load(logits, first + code), highest)
    most = largest(highest)
    for code in range(whole, count):
        most = max(most, logits[first + code])
    code, edge = 0, splat(most)
    while code < whole and count_at_least(load(logits, first + code), edge) == 0:
        code += LANES
    while code < count and not logits[first + code] >= most:
        code += 1
    return code if code < count else 0


@inlined
def _low_edge(logits: Floats, first: int, count: int, top_k: int, highest: Floats) -> Any:
    """A number that at least top_k logits reach, and not many more: that as many of the groups' largest reach.

    A group is a lane of every so many vectors. highest: room for as many numbers as there are groups, and a vector.
    """
    vectors = count // LANES
    parts = min(vectors, max(2 * ((top_k + LANES - 1) // LANES), 8))
    if parts * LANES < top_k:
        return np.float32(-np.inf)
    for part in range(parts):
        largest_there = load(logits, first + part * LANES)
        for vector in range(part + parts, vectors, parts):
            largest_there = greater(load(logits, first + vector * LANES), largest_there)
        store(highest, part * LANES, largest_there)
    return _edge(highest, parts * LANES, top_k, np.float32(-np.inf))


@inlined
def _find(logits: Floats, first: int, count: int, edge: Any, codes: Hashes, found: Floats) -> int:
    """Writes down the codes whose logits reach the edge, and these → how many there are."""
    number, edges = 0, splat(edge)
    for begin in range(0, count, LANES):
        if begin + LANES > count or count_at_least(load(logits, first + begin), edges) > 0:
            for code in range(begin, min(begin + LANES, count)):
                logit = logits[first + code]
                codes[number], found[number] = code, logit
                number += logit >= edge
    return number


@compiled
def _edge(numbers: Floats, count: int, rank: int, low_edge: Any) -> Any:
    """A number that `rank` of `count` numbers reach: the rank-th largest, or a smaller one that tells them apart too.

    It is at least low_edge. Halves the range of all floats in which it can be: their bits, read as integers, are in the
    floats' own order. Behind the numbers there is room for a vector.
    """
    store(numbers, count, splat(np.float32(np.nan)))
    highest = splat(low_edge)
    for index in range(0, count, LANES):
        highest = greater(load(numbers, index), highest)
    low, high = _key(low_edge), _key(largest(highest))
    while low < high:
        middle = (low + high + 1) >> 1
        reaching, edge = 0, splat(_float(middle))
        for index in range(0, count, LANES):
            reaching += count_at_least(load(numbers, index), edge)
        if reaching == rank:
            return _float(middle)
        if reaching > rank:
            low = middle
        else:
            high = middle - 1
    return _float(low)


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
