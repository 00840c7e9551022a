"""What a call comes to: a table for people, JSON for machines."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from client.call.record import CallRecord, CallTurn
from client.errors import InputError
from client.report_table import NONE, ReportTable, milliseconds


def call_table(record: CallRecord) -> ReportTable:
    """One row a turn."""
    turns = record.turns_from(0)
    columns = {
        name: cell
        for name, cell in COLUMNS.items()
        if name not in OPTIONAL or any(cell(turn) != NONE for turn in turns)
    }
    note = " ".join(meaning for name, meaning in MEANINGS.items() if name in columns)
    return ReportTable("Turns", list(columns), [[cell(turn) for cell in columns.values()] for turn in turns], note)


def sums(record: CallRecord) -> str:
    """The call in one line."""
    waits = [turn.first_audio_seconds for turn in record.turns.values() if turn.first_audio_seconds is not None]
    parts = [f"{len(record.turns)} turn{'' if len(record.turns) == 1 else 's'}"]
    if waits:
        parts.append(f"TTFA {milliseconds(median(waits))} ms in the median, {milliseconds(max(waits))} ms at most")
    parts.append(f"packets left at most {milliseconds(record.lateness_seconds)} ms late")
    if record.dropped_packet_count:
        parts.append(f"{record.dropped_packet_count} packets of the microphone were dropped")
    return "; ".join(parts) + "."


def seconds(number: float | None) -> str:
    """A length for a table; what did not happen is a dash."""
    return NONE if number is None else f"{number:.2f}"


# Eleven columns of a short name in 80 characters.
COLUMNS: Mapping[str, Callable[[CallTurn], str]] = {
    "turn": lambda turn: str(turn.turn_index),
    "said": lambda turn: turn.name,
    "speech\non, ms": lambda turn: milliseconds(turn.noticed_seconds),
    "speech\noff, ms": lambda turn: milliseconds(turn.stopped_seconds),
    "TTFA\nms": lambda turn: milliseconds(turn.first_audio_seconds),
    "gaps\nms": lambda turn: milliseconds(turn.under_run_seconds),
    "heard\ns": lambda turn: seconds(turn.played_seconds),
    "came\ns": lambda turn: seconds(turn.received_seconds if turn.is_cut else None),
    "over\ns": lambda turn: seconds(turn.barge_in_seconds),
    "stop\nms": lambda turn: milliseconds(turn.stop_seconds),
    "ended": lambda turn: turn.ended.reason.name if turn.ended else NONE,
}
MEANINGS = {
    "speech\non, ms": "Speech on, off: when the mesh noticed that the caller began and ended to speak, after that.",
    "TTFA\nms": "TTFA: end of the caller's speech → first sound.",
    "gaps\nms": "Gaps: silence in a reply that is played from its first packet on.",
    "came\ns": "Came: of a reply that was not heard to its end.",
    "stop\nms": "Over: how long after its first sound it was spoken over; stop: from then until the mesh has ended it.",
}
OPTIONAL = ("speech\non, ms", "speech\noff, ms", "came\ns", "over\ns", "stop\nms")


def call_json(record: CallRecord, facts: Mapping[str, Any]) -> str:
    """The whole call as JSON: `facts` of the caller, then every turn; times in seconds."""
    waits = [turn.first_audio_seconds for turn in record.turns.values() if turn.first_audio_seconds is not None]
    report = {
        **facts,
        "lateness_seconds": record.lateness_seconds,
        "dropped_packet_count": record.dropped_packet_count,
        "median_first_audio_seconds": median(waits) if waits else None,
        "greatest_first_audio_seconds": max(waits, default=None),
        "turns": [turn_json(turn) for turn in record.turns_from(0)],
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def turn_json(turn: CallTurn) -> dict[str, Any]:
    """A turn as JSON has it."""
    ended = turn.ended
    return {
        "turn_index": turn.turn_index,
        "said": turn.name,
        "speech_began_at": turn.speech_began_at,
        "speech_ended_at": turn.speech_ended_at,
        "first_audio_at": turn.first_audio_at,
        "barge_in_at": turn.barge_in_at,
        "reply_ended_at": turn.ended_at,
        "noticed_seconds": turn.noticed_seconds,
        "stopped_seconds": turn.stopped_seconds,
        "first_audio_seconds": turn.first_audio_seconds,
        "under_run_seconds": turn.under_run_seconds,
        "gaps": [
            {"audio_seconds": gap.audio_sample / turn.sample_rate_hz, "seconds": gap.seconds} for gap in turn.gaps
        ],
        "barge_in_seconds": turn.barge_in_seconds,
        "stop_seconds": turn.stop_seconds,
        "received_seconds": turn.received_seconds,
        "played_seconds": turn.played_seconds,
        "played_sample_count": turn.played_sample_count,
        "stale_sample_count": turn.stale_sample_count,
        "late_sample_count": turn.late_sample_count,
        "reason": ended.reason.name if ended else None,
        "failure": str(ended.failure) if ended and ended.failure else None,
        "text": ended.text if ended else None,
        "pieces": [
            {
                "text": piece.text,
                "audio_sample": piece.audio_sample,
                "audio_seconds": piece.audio_sample / turn.sample_rate_hz,
                "received_at": piece.received_at,
            }
            for piece in turn.texts
        ],
        "frame_count": ended.frame_count if ended else None,
        "step_count": ended.step_count if ended else None,
        "timings": asdict(ended.timings) if ended else None,
    }


def write_json(path: Path, text: str) -> None:
    """Writes a report."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_json_writable(path: Path) -> None:
    """Refuses a name that no file can be written to, before any work is done for it."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: " + ("is a folder" if path.is_dir() else f"there is no folder {path.parent}"))
