"""Work is added up by name."""

import time

import pytest
import torch

from services.inference.stopwatch import Stopwatch


def test_pieces_of_a_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 1.5, 10.0, 12.0, 20.0, 20.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    watch = Stopwatch(torch.device("cpu"))
    for name in ("encode", "prefill", "encode"):
        with watch.time(name):
            pass
    assert [watch.seconds(name) for name in ("encode", "prefill", "step")] == [0.75, 2.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_times_what_it_does() -> None:
    device = torch.device("cuda")
    watch, matrix = Stopwatch(device), torch.ones((2048, 2048), device=device)
    with watch.time("work"):
        for _ in range(10):
            matrix = (matrix @ matrix).clamp(max=1)
    torch.cuda.synchronize(device)
    assert watch.seconds("work") > 0
