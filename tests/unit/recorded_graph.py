"""What a CUDA graph does, on a CPU: a step is recorded once, operation by operation, and played again from then on.

A replay runs no Python of the step: it computes the recorded operations on the very tensors of the recording, and
writes into the very outputs. So a step fails here as it would on CUDA if it reads a number on the host, takes a tensor
that was made elsewhere in the meantime, or leans on anything but its tensors' contents.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host reads their results' sizes or values; or the tensor's own memory.
READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
HOST_VIEWS = ("numpy", "tolist", "__array__")


class HostRead(AssertionError):
    """A step read a number on the host."""


@dataclass(frozen=True)
class Operation:
    """One operation of a recorded step and what came out."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: list[Tensor]

    def run(self) -> None:
        """Does it again, into the same outputs."""
        again = tree_leaves(self.function(*self.arguments, **self.keywords))
        for output, new in zip(self.outputs, again, strict=True):
            if new.data_ptr() != output.data_ptr():
                output.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if _reads(function, args):
            raise HostRead(f"a step may not read on the host, as {function} does")
        outputs = function(*args, **(kwargs or {}))
        self.operations.append(Operation(function, args, kwargs or {}, tree_leaves(outputs)))
        return outputs


def _reads(function: Any, args: tuple[Any, ...]) -> bool:
    if function is torch.ops.aten.index.Tensor:  # by numbers, the result's size is theirs
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return function is torch.ops.aten.is_nonzero.default or bool(READING_TAGS & set(function.tags))


@contextmanager
def _no_host_views() -> Iterator[None]:
    """Within the block no tensor gives its memory to the host."""

    def refuse(*_: Any, **__: Any) -> None:
        raise HostRead("a step may not read on the host, as numpy and tolist do")

    with ExitStack() as patches:
        for name in HOST_VIEWS:
            patches.enter_context(patch.object(Tensor, name, refuse))
        yield


class RecordedGraphs:
    """A `Capture` for `StepLadder`; `count` recordings were made. `closed`: any further one fails."""

    def __init__(self) -> None:
        self.count = 0
        self.closed = False

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        assert not self.closed, "a step was captured that was not prepared"
        self.count += 1
        for _ in range(2):
            run()
        with _no_host_views(), _Recorder() as recorder:
            outputs = run()

        def replay() -> Any:
            for operation in recorder.operations:
                operation.run()
            return outputs

        return replay
