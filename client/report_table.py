"""A table that is shown on a terminal and written to a file alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from client.reply_display import printable

NONE = "–"


@dataclass(frozen=True)
class ReportTable:
    """A title, the heads of the columns, rows of cells, and what must be known to read it.

    A head has one line for the terminal or two, divided by a line break.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> Group:
        """The table for a terminal: words to the left, numbers to the right."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        for index, column in enumerate(self.columns):
            is_words = index == 0 or not all(row[index] == NONE or is_number(row[index]) for row in self.rows)
            table.add_column(Text(column), justify="left" if is_words else "right", vertical="bottom", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        note = [Text(self.note, style="dim")] if self.note else []
        return Group(Text(printable(self.title), style="bold"), table, *note)

    def markdown(self) -> str:
        """The table in Markdown."""
        heads = [column.replace("\n", " ") for column in self.columns]
        lines = [f"### {self.title}", "", markdown_row(heads), markdown_row(["---", *["---:"] * (len(heads) - 1)])]
        lines += [markdown_row(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])]) + "\n"


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(printable(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def is_number(cell: str) -> bool:
    """Whether a cell starts as a number does."""
    return cell[:1].isdigit() or (cell[:1] in "-−<~≈" and cell[1:2].isdigit())


def digits(number: float | None) -> str:
    """Three digits of a number of 0 or more, thousands with commas; a dash for none."""
    if number is None:
        return NONE
    for limit, decimals in ((9.995, 2), (99.95, 1)):
        if number < limit:
            return f"{number:.{decimals}f}"
    return f"{number:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """A time in milliseconds, to three digits."""
    return NONE if seconds is None else digits(seconds * 1000)


def percent(share: float | None) -> str:
    """A share in percent."""
    return NONE if share is None else f"{share * 100:.1f}"


def megabytes(byte_count: float) -> str:
    """Bytes in MB of 10⁶."""
    return f"{byte_count / 1e6:,.0f}"
