"""How far an evaluation is, on the terminal of stderr; where that is none, nothing."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.reply_display import printable

REFRESHES_PER_SECOND = 2
"""Seldom: the machine may be the mesh's too."""


class EvaluationProgress:
    """A bar of the questions, first asked and then judged."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} replies"),
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
        """Tells what is going on where no replies are counted."""
        if self._console.is_terminal:
            self._progress.print(printable(text), style="dim", markup=False, highlight=False)

    def begin(self, name: str, count: int) -> None:
        """So many replies are to be asked for or judged."""
        self._progress.reset(self._task, description=name, total=count, visible=True)

    def advance(self) -> None:
        """One more."""
        self._progress.advance(self._task)
