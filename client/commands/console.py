"""The terminal of commands that tell more than one line."""

from rich.console import Console


def plain_console() -> Console:
    """A console whose lines stay whole where no terminal limits their width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
