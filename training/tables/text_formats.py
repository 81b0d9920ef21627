"""Reads tables from text files: comma- or tab-separated values, and JSON lines; UTF-8, with or without a mark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from training.settings.tables import TableConfig
from training.tables.rows import Cell, Columns

_MAX_CELL_CHARACTERS = 1 << 27
_SHOWN_BYTES = 20

Reader = Callable[[str, TableConfig, Sequence[str]], Columns]
"""Reads the wanted columns of a path."""


def read_csv(path: str, table: TableConfig, wanted: Sequence[str]) -> Columns:
    """Comma-separated values (RFC 4180): a cell in double quotes may contain commas, line ends and doubled quotes.

    Raises:
        InputError: the file is not UTF-8, its header has a name twice, or a row has another number of cells.
    """
    return _separated(path, table.delimiter or ",", table.quotes is not False, wanted)


def read_tsv(path: str, table: TableConfig, wanted: Sequence[str]) -> Columns:
    """Tab-separated values; a quote is a character like others, unless `quotes` is set.

    Raises:
        InputError: as for `read_csv`.
    """
    return _separated(path, table.delimiter or "\t", table.quotes is True, wanted)


def read_json_lines(path: str, _table: TableConfig, wanted: Sequence[str]) -> Columns:
    """One JSON object per line; a key that a row lacks is a missing value. Empty lines are no rows.

    Raises:
        InputError: the file is not UTF-8, or a line is not a JSON object.
    """
    numbers: list[int] = []
    names: dict[str, None] = {}
    cells: dict[str, list[Cell]] = {name: [] for name in wanted}
    # Not splitlines(): a text may contain U+2028 and similar characters.
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{path}:{number}: not JSON ({reason}); expected one object per line") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}:{number}: not an object; expected one object with the columns per line")
        names |= dict.fromkeys(values)
        numbers.append(number)
        for name, column in cells.items():
            column.append(values.get(name))
    return Columns(path, numbers, True, list(names), {name: cells[name] for name in wanted if name in names})


def _separated(path: str, delimiter: str, has_quotes: bool, wanted: Sequence[str]) -> Columns:
    rows = _rows(path, delimiter, has_quotes)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: is empty; expected a header with the names of the columns")
    number, names = first
    twice = next((name for name in wanted if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}:{number}: its header has {twice!r} twice; rename one column")
    places = {name: names.index(name) for name in wanted if name in names}
    numbers: list[int] = []
    cells: dict[str, list[Cell]] = {name: [] for name in places}
    for number, row in rows:
        if len(row) != len(names):
            raise InputError(
                f"{path}:{number}: has {len(row)} cells, and the header has {len(names)}; {_remedy(has_quotes)}"
            )
        numbers.append(number)
        for name, place in places.items():
            cells[name].append(row[place])
    return Columns(path, numbers, True, names, cells)


def _remedy(has_quotes: bool) -> str:
    if has_quotes:
        return "put a cell with a delimiter in double quotes, or set delimiter or quotes = false"
    return "set quotes = true if cells are in double quotes, or set delimiter"


def _rows(path: str, delimiter: str, has_quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """All rows with the number of the line that each begins on; empty lines are no rows."""
    before = csv.field_size_limit(_MAX_CELL_CHARACTERS)
    quote = '"' if has_quotes else None
    first_line = 1
    # newline="" keeps the line ends within quotes as they are.
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), delimiter=delimiter, quotechar=quote, strict=True)
    try:
        for row in reader:
            if row:
                yield first_line, row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{first_line}: the row that begins here cannot be read ({shown(str(error))}); {_remedy(has_quotes)}"
        ) from error
    finally:
        csv.field_size_limit(before)


def _text_of(path: str) -> str:
    data = storage.read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + _SHOWN_BYTES]
        raise InputError(f"{path}:{line}: not UTF-8 at {found!r}; save the file as UTF-8") from error
