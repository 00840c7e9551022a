"""How many rows a matrix product has."""

import torch

FEWEST_ROWS = 4


def batch_rows(count: int, device: torch.device) -> int:
    """Rows to compute for `count` of them: on a CPU rounded up to a multiple of 4 a thread.

    A CPU's matrix product has kernels of their own for fewer rows than 4, and cuts the rows among its threads: their
    last bits differ. With whole fours for every thread a row's result depends neither on its place nor on how many
    rows there are, so steps of other widths, and stages with other slot counts and chunk sizes, give the same bytes.
    """
    multiple = FEWEST_ROWS * torch.get_num_threads() if device.type == "cpu" else 1
    return -(-count // multiple) * multiple
