"""How far a run is, on the terminal of stderr; where that is none, nothing."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.reply_display import printable

REFRESHES_PER_SECOND = 2
"""Seldom: the machine may be the mesh's too, and the mesh is measured."""


class RunProgress:
    """A bar of what a run counts: `unit` is its name, in the plural."""

    def __init__(self, console: Console, unit: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"),
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
        """Tells what is going on where nothing is counted."""
        if self._console.is_terminal:
            self._progress.print(printable(text), style="dim", markup=False, highlight=False)

    def begin(self, name: str, total: int) -> None:
        """So many are to come."""
        self._progress.reset(self._task, description=name, total=total, visible=True)

    def advance(self, count: int = 1) -> None:
        """Some came."""
        self._progress.advance(self._task, count)

    def finish(self) -> None:
        """Nothing is counted any more."""
        self._progress.update(self._task, visible=False)
