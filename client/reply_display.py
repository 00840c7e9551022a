"""A reply on the terminal while it arrives."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text as Line

from client.events import Audio, Event, ReplyEnded, ReplyStarted, Text
from client.talk import Turn


class ReplyDisplay:
    """Shows each reply's text and how much of its sound is here; where there is no terminal, once it is complete.

    `maximum_seconds` is what a full progress bar means; None when no limit was asked for.
    """

    def __init__(self, console: Console, maximum_seconds: float | None) -> None:
        self._console = console
        self._maximum_seconds = maximum_seconds
        self._live: Live | None = None
        self._text = Line()
        self._progress = Progress()
        self._audio_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def watch(self, turn: Turn, event: Event) -> None:
        """Takes in an event of the reply to a turn."""
        match event:
            case ReplyStarted():
                self._begin(turn)
            case Text():
                self._text.append(printable(event.text))
                self._refresh()
            case Audio():
                self._audio_seconds += len(event.samples) / event.sample_rate_hz
                self._refresh()
            case ReplyEnded():
                self._refresh()
                self._finish()

    def _begin(self, turn: Turn) -> None:
        self._finish()
        self._text = Line(f"{printable(turn.name)} → ", style="bold")
        self._text.append("", style="not bold")
        self._audio_seconds = 0.0
        self._progress = Progress(
            BarColumn(bar_width=30), TextColumn("{task.completed:.1f} s of audio"), console=self._console
        )
        self._progress.add_task("audio", total=self._maximum_seconds)
        self._live = Live(Group(self._text, self._progress), console=self._console, auto_refresh=False)
        self._live.start()

    def _refresh(self) -> None:
        if self._live is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._audio_seconds)
            self._live.refresh()

    def _finish(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            if not self._console.is_terminal:
                self._console.line()


def printable(text: str) -> str:
    """The text without characters that would steer a terminal."""
    return "".join(character for character in text if character.isprintable() or character == "\n")
