"""Print tables and notes, also if no terminal defines a width."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 110


def wide_console() -> Console:
    """Return the terminal, with 110 columns if there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a table under a title, which rich would fold to the width of the table."""
    console.print(title, style="bold", highlight=False, markup=False)
    console.print(table)


def print_note(console: Console, text: str) -> None:
    """Print a text whose lines after the first are indented."""
    for line in textwrap.wrap(text, console.width, subsequent_indent="    "):
        console.print(escape(line), highlight=False)
