"""Steps of fixed shapes, captured or not; and the mirrors through which the host speaks to them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.graphs import Mirror, StepLadder, graph_capture, synchronize
from tests.unit.recorded_graph import HostRead, RecordedGraphs
from tests.unit.stream_visits import DEVICES, needs_cuda

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Calls:
    """A step that notes the rungs that it was run for: the first numbers of `given`, doubled, and their sum."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.given = torch.arange(8.0, device=device)
        self.rungs: list[int] = []

    def __call__(self, rung: int) -> tuple[Tensor, Tensor]:
        self.rungs.append(rung)
        return self.given[:rung] * 2, self.given[:rung].sum()


def test_without_capture_each_step_is_run_as_it_is() -> None:
    calls = Calls()
    ladder = StepLadder(calls, None)
    assert [float(ladder.step(rung)[1]) for rung in (3, 3, 8)] == [3.0, 3.0, 28.0]
    assert calls.rungs == [3, 3, 8]


def test_without_capture_preparing_runs_the_first_rung_alone() -> None:
    calls = Calls()
    StepLadder(calls, None).prepare([5, 6, 7])
    assert calls.rungs == [5]
    StepLadder(calls, None).prepare([])
    assert calls.rungs == [5]


def test_each_rung_is_captured_once_whatever_the_order() -> None:
    calls, graphs = Calls(), RecordedGraphs()
    ladder = StepLadder(calls, graphs)
    ladder.prepare([8, 4])
    assert graphs.count == 2
    runs = len(calls.rungs)
    graphs.closed = True
    ladder.prepare([4, 8, 4])
    for rung in (4, 8, 8, 4):
        ladder.step(rung)
    assert len(calls.rungs) == runs
    with pytest.raises(AssertionError, match="was not prepared"):
        ladder.step(3)
    graphs.closed = False
    ladder.step(3)
    assert graphs.count == 3


def device_capture(device: torch.device) -> Any:
    return RecordedGraphs() if device.type == "cpu" else graph_capture(device)


@pytest.mark.parametrize("name", DEVICES)
def test_a_replay_reads_what_the_host_wrote_since_and_always_answers_in_the_same_place(name: str) -> None:
    device = torch.device(name)
    calls = Calls(device)
    ladder: StepLadder[int, tuple[Tensor, Tensor]] = StepLadder(calls, device_capture(device))
    ladder.prepare([8, 4])
    places = {rung: [output.data_ptr() for output in ladder.step(rung)] for rung in (4, 8)}
    given = Mirror((8,), torch.float32, device)
    for round_number in range(5):
        given.host[:] = [number * round_number - 1.5 for number in range(8)]
        given.send()
        calls.given.copy_(given.tensor)
        for rung in (8, 4):
            found, expected = ladder.step(rung), Calls.__call__(calls, rung)
            synchronize(device)
            assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
            assert [output.data_ptr() for output in found] == places[rung]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_a_recorded_step_may_not_read_on_the_host(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(HostRead):
        RecordedGraphs()(lambda: read(torch.ones(3)))


def test_a_cpu_has_no_graphs() -> None:
    assert graph_capture(CPU) is None


@needs_cuda
def test_a_capture_leaves_the_thread_on_its_own_stream() -> None:
    own = torch.cuda.Stream()
    with torch.cuda.stream(own):
        ladder = StepLadder(Calls(torch.device("cuda")), graph_capture(torch.device("cuda")))
        ladder.prepare([8])
        assert torch.cuda.current_stream() == own
        assert ladder.step(8)[1].item() == 28.0


# --- mirrors


@pytest.mark.parametrize("name", DEVICES)
def test_a_mirror_brings_numbers_over_and_back(name: str) -> None:
    device = torch.device(name)
    mirror = Mirror((3, 2), torch.int64, device)
    place, memory = mirror.tensor.data_ptr(), mirror.host.__array_interface__["data"]
    for start in (0, 10):
        mirror.host[:] = [[start, start + 1]] * 3
        mirror.send()
        assert mirror.tensor.tolist() == [[start, start + 1]] * 3
        mirror.fetch(mirror.tensor * 2)
        synchronize(device)
        assert mirror.host.tolist() == [[2 * start, 2 * start + 2]] * 3
    assert mirror.tensor.data_ptr() == place
    assert mirror.host.__array_interface__["data"] == memory
    assert mirror.tensor.device.type == name


def test_fetching_fewer_rows_leaves_the_others() -> None:
    mirror = Mirror((4, 2), torch.float32, CPU)
    mirror.host[:] = 7.0
    mirror.fetch(torch.ones(3, 2))
    assert mirror.host.tolist() == [[1.0, 1.0]] * 3 + [[7.0, 7.0]]


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (torch.zeros(5, 2), r"torch.float32 of shape \[5, 2\]"),
        (torch.zeros(4, 3), r"torch.float32 of shape \[4, 3\]"),
        (torch.zeros(4), r"torch.float32 of shape \[4\]"),
        (torch.zeros(4, 2, dtype=torch.int64), r"torch.int64 of shape \[4, 2\]"),
    ],
)
def test_what_does_not_fit_a_mirror_is_refused_naming_both_shapes(source: Tensor, got: str) -> None:
    mirror = Mirror((4, 2), torch.float32, CPU)
    with pytest.raises(ValueError, match=rf"^expected torch.float32 of shape \[4, 2\] or its first rows, got {got}$"):
        mirror.fetch(source)
