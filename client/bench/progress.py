"""How far a benchmark is, on the terminal of stderr; where that is none, nothing."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.bench.load import Load
from client.reply_display import printable

REFRESHES_PER_SECOND = 2
"""Seldom: the driver shares the machine with what it measures."""


class BenchProgress:
    """A bar of the frames that a load is to give."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} frames"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._task = self._progress.add_task("", total=0, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Tells what is going on where no frames are counted."""
        if self._console.is_terminal:
            self._progress.print(printable(text), style="dim", markup=False, highlight=False)

    def begin(self, load: Load, frames_per_reply: int) -> None:
        """A load begins, its warm-up first."""
        total = (load.turn_count + load.warm_up_count) * frames_per_reply
        self._progress.reset(self._task, description=load.label, total=total, visible=True)

    def advance(self, frame_count: int) -> None:
        """Frames came."""
        self._progress.advance(self._task, frame_count)

    def finish(self) -> None:
        """No frames are counted any more."""
        self._progress.update(self._task, visible=False)
