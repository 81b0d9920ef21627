"""Tables on the console: drawn by rich on a terminal, plain aligned columns elsewhere or if rich is not installed."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(value: object) -> str:
    """Foreign text, such as a file name, for one line of a terminal: invisible characters are escaped."""
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _UNSEEN else each for each in str(value)
    )


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None, title: str = ""
) -> None:
    """Print rows under their column names; control characters in cells are escaped.

    Args:
        styles: rich style of cells with exactly this text, such as {"ok": "green"}.
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    if not (sys.stdout.isatty() and _print_with_rich(columns, rows, styles or {}, title)):
        print(plain_table(columns, rows, title))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """The table without colours: each column but the last as wide as its widest cell, two spaces between."""
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) - 1)]
    padded = [[cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)] for line in lines]
    texts = ["  ".join([*cells, line[-1]]).rstrip() for cells, line in zip(padded, lines, strict=True)]
    return "\n".join(([title] if title else []) + texts)


def _print_with_rich(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str], title: str
) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)
    return True
