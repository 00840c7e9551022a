"""What the commands sum up at their end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from client.parity import CHECKS, Outcome, Outcomes
from client.reply_display import printable
from client.talk import HeardReply
from client.voice import Voice

NONE = "–"
CONVENTIONS = (
    "TTFA: end of turn sent → first sample received.\n"
    "RTF: end of turn sent → last sample received, divided by the length of the audio; "
    "below 1 is faster than real time."
)


def replies_table(replies: Sequence[HeardReply], files: Sequence[Path]) -> Table:
    """One column a turn: what the client measured, then what the mesh says of its stages."""
    table = Table(title="Replies", title_justify="left")
    table.add_column("", no_wrap=True)
    for reply in replies:
        table.add_column(Text(printable(reply.turn.name)), justify="right", overflow="fold")
    for index, (label, value) in enumerate(REPLY_ROWS.items()):
        table.add_row(label, *(value(reply) for reply in replies), end_section=index in (3, 9))
    table.add_row("written to", *(Text(str(file), overflow="fold") for file in files))
    return table


def milliseconds(seconds: float | None) -> str:
    """A time for a table; what did not happen is a dash."""
    return NONE if not seconds else f"{seconds * 1000:.0f} ms"


REPLY_ROWS: Mapping[str, Callable[[HeardReply], str]] = {
    "TTFA at the client": lambda reply: milliseconds(reply.first_audio_seconds),
    "RTF": lambda reply: NONE if reply.rtf is None else f"{reply.rtf:.2f}",
    "audio": lambda reply: f"{reply.audio_seconds:.2f} s",
    "finish reason": lambda reply: reply.ended.reason.name,
    "queue": lambda reply: milliseconds(reply.ended.timings.queue_seconds),
    "reasoner, first step (TTFT)": lambda reply: milliseconds(reply.ended.timings.first_step_seconds),
    "speech, first frame (TTFF)": lambda reply: milliseconds(reply.ended.timings.first_frame_seconds),
    "codec, first audio": lambda reply: milliseconds(reply.ended.timings.first_codec_audio_seconds),
    "TTFA at the mesh": lambda reply: milliseconds(reply.ended.timings.first_audio_seconds),
    "total": lambda reply: milliseconds(reply.ended.timings.total_seconds),
    "frames": lambda reply: str(reply.ended.frame_count),
    "text tokens": lambda reply: str(reply.ended.step_count),
}


def voices_table(voices: Sequence[Voice]) -> Table:
    """The voices of a mesh."""
    table = Table("name", "example", "", "transcript", title="Voices")
    for voice in voices:
        kind = ", ".join(
            word
            for word, holds in (
                ("default", voice.is_default),
                ("built in", voice.is_builtin),
                ("private", voice.is_private),
            )
            if holds
        )
        transcript = Text(printable(voice.transcript), overflow="fold")
        table.add_row(Text(printable(voice.name)), f"{voice.example_seconds:.1f} s", kind, transcript)
    return table


def parity_table(outcomes_of_cases: Mapping[str, Outcomes]) -> Table:
    """One row a case, one column a check."""
    table = Table("case", *CHECKS, title="Parity with the reference", title_justify="left")
    for name, outcomes in outcomes_of_cases.items():
        table.add_row(Text(name), *(outcome_cell(outcomes[check]) for check in CHECKS))
    return table


def outcome_cell(outcome: Outcome) -> Text:
    """A tick, a dash for what could not be checked, or the first difference."""
    if outcome.skipped:
        return Text(NONE)
    if outcome.difference is None:
        return Text("✓", style="green")
    return Text(printable(outcome.difference), style="red", overflow="fold")
