"""A call on the terminal while it goes on."""

from rich.console import Console

from client.call.happening import Happening
from client.call.record import CallTurn
from client.reply_display import printable


class CallDisplay:
    """Writes a line for what happens, with the seconds since the session began; a reply's text as it is spoken."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_in_text = False

    def watch(self, happening: Happening) -> None:
        """Takes in what has happened."""
        turn = happening.turn
        match happening.kind:
            case "speaks":
                self._say(happening, f"caller: {happening.text}")
            case "spoken":
                self._say(happening, "caller: has finished")
            case "noticed" if turn is not None:
                self._say(happening, f"turn {turn.turn_index}: the mesh hears that it begins")
            case "stopped" if turn is not None:
                self._say(happening, f"turn {turn.turn_index}: the mesh hears that it is over")
            case "sound" if turn is not None:
                self._say(happening, f"reply {turn.turn_index}: first sound{after(turn.first_audio_seconds)}")
            case "text" if turn is not None:
                if not self._is_in_text:
                    self._write(f"{happening.seconds:8.2f}  reply {turn.turn_index}: ")
                self._write(happening.text.replace("\n", " "))
                self._is_in_text = True
            case "barge_in" if turn is not None:
                into = "" if turn.barge_in_seconds is None else f", {turn.barge_in_seconds:.2f} s into it"
                self._say(happening, f"caller: speaks over reply {turn.turn_index}{into}")
            case "over" if turn is not None:
                self._say(happening, f"reply {turn.turn_index}: {ending(turn)}")

    def finish(self) -> None:
        """Nothing more happens."""
        if self._is_in_text:
            self._console.line()
        self._is_in_text = False

    def _say(self, happening: Happening, sentence: str) -> None:
        self.finish()
        self._write(f"{happening.seconds:8.2f}  {sentence}\n")

    def _write(self, text: str) -> None:
        self._console.print(printable(text), end="", markup=False, highlight=False, soft_wrap=True)


def after(seconds: float | None) -> str:
    """How long something took, where that is known."""
    return "" if seconds is None else f" after {seconds * 1000:.0f} ms"


def ending(turn: CallTurn) -> str:
    """How a reply ended."""
    reason = turn.ended.reason.name if turn.ended else "unfinished"
    if turn.is_cut:
        return f"stopped{after(turn.stop_seconds)}, {turn.played_seconds:.2f} s of it were heard ({reason})"
    if turn.ended is not None and turn.ended.failure is not None:
        return f"failed after {turn.played_seconds:.2f} s of it: {turn.ended.failure}"
    silent = f", {turn.under_run_seconds:.2f} s of silence in it" if turn.gaps else ""
    return f"heard to its end, {turn.played_seconds:.2f} s{silent} ({reason})"
