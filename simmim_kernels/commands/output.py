"""What the commands print: as wide as the terminal, as coloured as the environment wants it, and no word cut."""

import os
import shutil
import textwrap

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# Of a table, besides its cells: a column's margins and a rule, and the last rule.
_MARGINS_AND_RULE, _LAST_RULE = 3, 1


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """On standard output, on standard error, or on neither. NO_COLOR, FORCE_COLOR, TERM and COLUMNS are heard."""
    made = Console(
        stderr=stderr,
        quiet=quiet,
        # By itself rich takes NO_COLOR for colours alone, and leaves bold and italic in.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        # What is printed holds names of files, which are no markup.
        markup=False,
        emoji=False,
        highlight=False,
    )
    if made.is_dumb_terminal:
        made.size = shutil.get_terminal_size()  # rich takes 80 columns, whatever COLUMNS says
    return made


def moves(console: Console) -> bool:
    """Whether a bar may be drawn over again: on a terminal, and not where FORCE_COLOR speaks for a pipe."""
    return console.is_interactive and console.file.isatty()


def say(console: Console, text: str, *, indent: str = "", style: str | None = None) -> None:
    """Prints a text, wrapped between words. A name of a file that is wider than the console stays in one piece."""
    lines = textwrap.fill(text, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    console.print(lines, style=style, soft_wrap=True)


def show(console: Console, table: Table) -> None:
    """Prints a table. A narrow console wraps its words, columns of numbers (at the right) staying whole.

    Where even that does not fit, the cells of a row stand below each other.
    """
    wide, least = [], []
    for column in table.columns:
        cells = [str(cell) for cell in column.cells]
        wide.append(max(map(cell_len, [str(column.header), *cells])))
        words = str(column.header).split() + (cells if column.justify == "right" else " ".join(cells).split())
        least.append(max(map(cell_len, words), default=0))
    spare = console.width - len(wide) * _MARGINS_AND_RULE - _LAST_RULE - sum(least)
    if spare < 0:
        _show_rows_as_lines(console, table)
        return
    for column, most, width in zip(table.columns, wide, least, strict=True):
        column.width = min(most, width + spare)
        spare -= column.width - width
    console.print(table)


def _show_rows_as_lines(console: Console, table: Table) -> None:
    headers = [str(column.header) for column in table.columns]
    indent = max(map(cell_len, headers)) + 2
    say(console, str(table.title), style="table.title")
    group = ""
    for row in zip(*(column.cells for column in table.columns), strict=True):
        group, *rest = str(row[0]) or group, *map(str, row[1:])  # the rows of a group leave out what the first one says
        console.print()
        for header, cell in zip(headers, (group, *rest), strict=True):
            if cell:
                text = f"{header:<{indent}}{cell}" if header else cell
                say(console, text, indent=" " * indent if header else "")
    console.print()
    say(console, str(table.caption), style="table.caption")
