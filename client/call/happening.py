"""What happens during a call, for those who watch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from client.call.record import CallTurn

Kind: TypeAlias = Literal["speaks", "spoken", "noticed", "stopped", "sound", "text", "barge_in", "over"]


@dataclass(frozen=True)
class Happening:
    """Something happened, `seconds` after the session began.

    The caller began to say something and has said it (`text`: its name); the mesh noticed that speech began and
    stopped; the first sound of a reply came; a piece of its text is being spoken (`text`: the piece); the caller speaks
    over it; the reply is over: heard to its end, or stopped. `turn` is None for what the caller says.
    """

    seconds: float
    kind: Kind
    turn: CallTurn | None = None
    text: str = ""


Watch: TypeAlias = Callable[[Happening], None]


def ignore(_: Happening) -> None:
    """Nobody watches."""
