"""Reads and checks the files of a table: all that can be known about its rows before anything is computed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.settings.tables import DIRECTORY_FORMAT, TableConfig, files_of, format_of
from training.tables.arrow_formats import read_directory, read_parquet
from training.tables.labels import Names, Targets, has_labels, label_names, targets_of
from training.tables.rows import Columns
from training.tables.text_formats import Reader, read_csv, read_json_lines, read_tsv

READERS: dict[str, Reader] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_json_lines,
    "parquet": read_parquet,
    DIRECTORY_FORMAT: read_directory,
}
"""By the value of `format`. A new format is a reader and a row here."""

_HASH_KEY = b"dev_share"


@dataclass(frozen=True)
class LabelledRows:
    """Checked rows. texts: one or two lists; targets: None for a test file without labels."""

    columns: Columns
    texts: tuple[list[str], ...]
    targets: Targets | None

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True)
class Splits:
    """The rows of a table, and the names of its labels in the order of the class numbers."""

    names: Names
    train: LabelledRows
    dev: LabelledRows
    test: LabelledRows | None


def read_splits(table: TableConfig) -> Splits:
    """Read all files of a table.

    Raises:
        InputError: a file is missing or cannot be read, a column is missing, a text is empty, or a label is missing or
            unknown; the message names the file and the row.
    """
    files_of(table)
    train = _read(table, "train_file", labelled=True)
    if table.dev_share is None:
        dev = _read(table, "dev_file", labelled=True)
    else:
        train, dev = _split(train, table, table.dev_share)
    names = label_names(train, table)
    train_rows, dev_rows = (
        LabelledRows(each, _texts(each, table), targets_of(each, table, names, train.path)) for each in (train, dev)
    )
    if table.test_file is None:
        return Splits(names, train_rows, dev_rows, None)
    test = _read(table, "test_file", labelled=False)
    targets = targets_of(test, table, names, train.path) if has_labels(test, table) else None
    return Splits(names, train_rows, dev_rows, LabelledRows(test, _texts(test, table), targets))


def num_training_rows(table: TableConfig) -> int:
    """Rows that a table is trained on.

    Raises:
        InputError: as for `read_splits`.
    """
    return len(read_splits(table).train)


def _read(table: TableConfig, role: str, labelled: bool) -> Columns:
    path = str(getattr(table, role))
    format_name = format_of(table, role)
    if (storage.file_size_bytes(path) is None) != (format_name == DIRECTORY_FORMAT):
        raise InputError(f"{path}: format = {format_name!r} of the table {table.name!r} does not fit it; change format")
    columns = READERS[format_name](path, table, (*table.text, table.label))
    for name in (*table.text, *([table.label] if labelled else [])):
        if name not in columns.names:
            raise InputError(
                f"{path}: no column {name!r}; it has {', '.join(columns.names)}: set text or label of the table "
                f"{table.name!r}"
            )
    if not len(columns):
        raise InputError(f"{path}: has no rows; give a file with at least one")
    for name in table.text:
        for row, cell in enumerate(columns.cells[name]):
            _require_text(columns, name, row, cell)
    return columns


def _require_text(columns: Columns, name: str, row: int, cell: object) -> None:
    if cell is None or cell == "":
        raise InputError(f"{columns.place(row)}: column {name!r} is empty; give each row a text, or remove the row")
    if not isinstance(cell, str):
        raise InputError(f"{columns.place(row)}: column {name!r} has a {type(cell).__name__}; a text is expected")
    if cell.isspace():
        raise InputError(f"{columns.place(row)}: column {name!r} is blank; give each row a text, or remove the row")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{columns.place(row)}: column {name!r} has half a surrogate pair at character {error.start}; remove it"
        ) from error


def _split(columns: Columns, table: TableConfig, dev_share: float) -> tuple[Columns, Columns]:
    """Training and development rows, each row by the hash of its texts alone."""
    parts: tuple[list[int], list[int]] = ([], [])
    for row, texts in enumerate(zip(*(columns.cells[name] for name in table.text), strict=True)):
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=8, key=_HASH_KEY).digest()
        parts[int.from_bytes(digest, "big") < dev_share * 2.0**64].append(row)
    for part, what in zip(parts, ("training", "development"), strict=True):
        if not part:
            raise InputError(
                f"{columns.path}: dev_share = {dev_share:g} leaves no {what} rows of {len(columns):,}; change it, or "
                "give a dev_file"
            )
    return columns.chosen(parts[0]), columns.chosen(parts[1])


def _texts(columns: Columns, table: TableConfig) -> tuple[list[str], ...]:
    return tuple(columns.cells[name] for name in table.text)
