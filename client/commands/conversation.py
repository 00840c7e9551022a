"""A conversation on the terminal: what is said, what is answered, where it was written."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from client.access import Access
from client.audio_file import check_writable, write_audio
from client.reply_display import ReplyDisplay
from client.session_settings import SessionSettings
from client.table import CONVENTIONS, replies_table
from client.talk import HeardReply, Turn, talk

FRAME_SECONDS = 0.08


async def hold_conversation(
    console: Console,
    addresses: Sequence[str],
    settings: SessionSettings,
    turns: Sequence[Turn],
    outputs: Sequence[Path],
    *,
    access: Access | None = None,
) -> None:
    """Takes the turns, shows and writes the replies, and sums them up."""
    unwritten = iter(outputs)
    maximum_seconds = settings.max_frame_count * FRAME_SECONDS if settings.max_frame_count else None

    def keep(reply: HeardReply) -> None:
        write_audio(next(unwritten), reply.samples, reply.sample_rate_hz)

    with ReplyDisplay(console, maximum_seconds) as display:
        replies = await talk(addresses, settings, turns, access=access, watch=display.watch, keep=keep)
    console.print(replies_table(replies, outputs))
    console.print(CONVENTIONS, style="dim")


def output_files(first: Path, count: int) -> list[Path]:
    """Where the replies go: reply.wav, reply-1.wav, reply-2.wav, …"""
    check_writable(first)
    return [first, *(first.with_stem(f"{first.stem}-{number}") for number in range(1, count))]
