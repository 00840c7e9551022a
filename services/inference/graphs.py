"""Steps of fixed shapes: captured as CUDA graphs and replayed, or run as they are."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Rung = TypeVar("Rung", bound=Hashable)
Outputs = TypeVar("Outputs")
Capture = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]


class Mirror:
    """A tensor of fixed shape and place, with a side that the host reads and writes.

    `tensor` is the device's, `host` the host's; on a CPU both are the same memory. On CUDA the copies are queued, not
    waited for: whoever reads `host` synchronises first.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._staging = self.tensor if device.type == "cpu" else torch.zeros(shape, dtype=dtype).pin_memory()
        self.host: NDArray[Any] = self._staging.numpy()

    def send(self) -> None:
        """Copies the host's side to the device."""
        if self._staging is not self.tensor:
            self.tensor.copy_(self._staging, non_blocking=True)

    def fetch(self, source: Tensor) -> None:
        """Copies `source`, the first rows of what the mirror holds, to the host's side."""
        into = self._staging[: len(source)]
        if source.shape != into.shape or source.dtype != into.dtype:
            raise ValueError(
                f"expected {into.dtype} of shape {list(self._staging.shape)} or its first rows, "
                f"got {source.dtype} of shape {list(source.shape)}"
            )
        into.copy_(source, non_blocking=True)


class StepLadder(Generic[Rung, Outputs]):
    """One step in a few fixed shapes, its rungs.

    `run` does the step of a rung on tensors that stay where they are, reads nothing back to the host, and returns its
    outputs. With `capture` each rung is captured once, and replayed from then on: its outputs are then always the same
    tensors, overwritten by the next step of any rung.
    """

    def __init__(self, run: Callable[[Rung], Outputs], capture: Capture[Outputs] | None) -> None:
        self._run = run
        self._capture = capture
        self._captured: dict[Rung, Callable[[], Outputs]] = {}

    def prepare(self, rungs: Iterable[Rung]) -> None:
        """Captures rungs before they are needed; without capture only the first is run, as a first time.

        What they write must be allowed to be lost.
        """
        for rung in rungs:
            self.step(rung)
            if self._capture is None:
                return

    def step(self, rung: Rung) -> Outputs:
        """Does the step."""
        if self._capture is None:
            return self._run(rung)
        if rung not in self._captured:
            self._captured[rung] = self._capture(lambda: self._run(rung))
        return self._captured[rung]()


def graph_capture(device: torch.device) -> Capture[Outputs] | None:
    """How steps are captured on a device: as CUDA graphs that share their memory; None where there are no graphs."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        # Libraries set themselves up at first use, which can't be captured.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other stages of this process may be at work on the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    return capture


def synchronize(device: torch.device) -> None:
    """Waits for what this thread has queued on the device."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
