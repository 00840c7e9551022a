"""The products of a step in compiled code, one after another in one call: as the step itself has them."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from services.inference.cpu.aligned import Floats, aligned, aligned_empty, aligned_zeros
from services.inference.cpu.compilation import compiled
from services.inference.cpu.product import in_blocks, laid_out, multiply
from services.inference.cpu.team import Ints


class CompiledProducts:
    """Runs products, each (rows, matrix [outputs, inputs]); matrices that are the same are kept once."""

    def __init__(self, products: Sequence[tuple[int, Tensor]]) -> None:
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        pieces, end, sizes = [], 0, []
        for rows, matrix in products:
            key = (matrix.data_ptr(), tuple(matrix.shape))
            if key not in places:
                pieces.append(laid_out(matrix.detach().numpy()))
                places[key] = end
                end += len(pieces[-1])
            outputs, inputs = matrix.shape
            sizes.append((rows, inputs, outputs, places[key]))
        self._sizes = np.array(sizes)
        self._weights = aligned(pieces)
        chance = np.random.default_rng(0)
        self._x = aligned([chance.normal(size=max(rows * inputs for rows, inputs, _, _ in sizes)).astype(np.float32)])
        self._y = aligned_empty(max(rows * in_blocks(outputs) for rows, _, outputs, _ in sizes))
        self._bias = aligned_zeros(max(in_blocks(outputs) for _, _, outputs, _ in sizes))

    def __call__(self) -> None:
        run_products(self._sizes, self._weights, self._bias, self._x, self._y)


@compiled
def run_products(sizes: Ints, weights: Floats, bias: Floats, x: Floats, y: Floats) -> None:
    """sizes [products, 4]: rows, inputs, outputs, and where the product's weight begins."""
    for index in range(len(sizes)):
        rows, inputs, outputs, place = sizes[index]
        multiply(x, 0, inputs, rows, inputs, weights, place, bias, 0, outputs, y, 0, in_blocks(outputs), False)
