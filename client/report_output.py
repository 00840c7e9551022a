"""What a run comes to: on the terminal, and the folder for its files."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from client.errors import InputError
from client.reply_display import printable
from client.report_table import ReportTable

WIDTH = 120
"""Columns where there is no terminal."""


def make_folder(out: Path | None) -> None:
    """Makes the folder of the files before any work is done for them."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made a folder: {error.strerror or error}") from None


def show(facts: Iterable[tuple[str, str]], tables: Iterable[ReportTable], remarks: Iterable[str]) -> None:
    """Prints a report: what it is of, by name, its tables, and what there is to say in sentences."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for name, text in facts:
        console.print(Text.assemble((f"{name}: ", "bold"), printable(text)))
    for table in tables:
        console.print()
        console.print(table.rich())
    console.print()
    for remark in remarks:
        console.print(Text(remark))
