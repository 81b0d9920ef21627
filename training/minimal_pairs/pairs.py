"""Reads minimal pairs: BLiMP's own files (Warstadt et al., 2020), or any JSON lines or TSV with the same columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.settings.tables import SUFFIXES, TableConfig
from training.tables.rows import Cell, Columns
from training.tables.text_formats import read_json_lines, read_tsv

READERS = {"jsonl": read_json_lines, "tsv": read_tsv}

_NAMES = {
    "good": ("sentence_good", "good"),
    "bad": ("sentence_bad", "bad"),
    "group": ("UID", "group"),
    "field": ("field",),
}
"""Accepted names of each column, BLiMP's own first. `group` and `field` may be missing."""


@dataclass(frozen=True)
class MinimalPairs:
    """Pairs in the order of their files; all lists have one entry per pair.

    group: BLiMP's paradigm, which is the unit of its scores; field: the part of the language it belongs to, or "".
    places: file and line, for messages.
    """

    good: list[str]
    bad: list[str]
    group: list[str]
    field: list[str]
    places: list[str]

    def __len__(self) -> int:
        return len(self.good)

    def chosen(self, rows: Sequence[int]) -> MinimalPairs:
        """Some of the pairs."""
        columns = (self.good, self.bad, self.group, self.field, self.places)
        return MinimalPairs(*([column[row] for row in rows] for column in columns))

    def sample_of_each_group(self, count: int) -> MinimalPairs:
        """At most `count` pairs of each group at random, the same ones each time; a larger sample contains a smaller.

        Not the first ones, which need not be like the others.
        """
        rows_of: dict[str, list[int]] = {}
        for row, group in enumerate(self.group):
            rows_of.setdefault(group, []).append(row)
        chosen: list[int] = []
        for group, rows in rows_of.items():
            # A seed of its own: which pairs are drawn does not depend on the other groups.
            seed = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")
            chosen += np.random.default_rng(seed).permutation(rows)[:count].tolist()
        return self.chosen(sorted(chosen))


def read_pairs(source: str) -> MinimalPairs:
    """Read a file, or all files of a directory in the order of their names.

    Args:
        source: a `.jsonl`, `.ndjson` or `.tsv` file, or a directory with such files; others there are ignored. A row
            has `sentence_good` and `sentence_bad` (or `good` and `bad`); `UID` (or `group`) is the file's name where
            it is missing, and `field` may be missing.

    Raises:
        InputError: there is no such file, a column is missing, or a sentence is empty; the line names file and row.
    """
    pairs = MinimalPairs([], [], [], [], [])
    for path in _files_of(source):
        _append(pairs, path, _columns_of(path))
    if not len(pairs):
        raise InputError(f"{source}: holds no pairs; give a file with a row for each pair")
    return pairs


def _files_of(source: str) -> list[str]:
    if not storage.is_local(source) or not os.path.isdir(storage.local_path(source)):
        if storage.file_size_bytes(source) is None:
            raise InputError(f"{source}: no such file or directory; give a file of pairs, or BLiMP's folder `data`")
        if _format_of(source) is None:
            raise InputError(f"{source}: its name must end in one of {', '.join(_suffixes())}; rename it")
        return [source]
    directory = storage.local_path(source)
    found = [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if _format_of(name) is not None]
    if not found:
        raise InputError(f"{source}: holds no file of pairs ({', '.join(_suffixes())}); name another directory")
    return found


def _suffixes() -> list[str]:
    return [suffix for suffix, kind in SUFFIXES.items() if kind in READERS]


def _format_of(path: str) -> str | None:
    kind = SUFFIXES.get(os.path.splitext(path)[1].lower())
    return kind if kind in READERS else None


def _columns_of(path: str) -> Columns:
    kind = _format_of(path)
    assert kind is not None, path
    table = TableConfig(name="pairs", train_file=path, dev_share=0.5)
    return READERS[kind](path, table, [name for names in _NAMES.values() for name in names])


def _append(pairs: MinimalPairs, path: str, columns: Columns) -> None:
    chosen = {role: next((name for name in names if name in columns.cells), None) for role, names in _NAMES.items()}
    for role in ("good", "bad"):
        if chosen[role] is None:
            raise InputError(
                f"{path}: has no column {' or '.join(_NAMES[role])}, only {', '.join(columns.names) or 'no row'}; "
                "rename the column"
            )
    stem = os.path.splitext(os.path.basename(path))[0]
    for row in range(len(columns)):
        place = columns.place(row)
        cells = {role: columns.cells[name][row] if name is not None else None for role, name in chosen.items()}
        pairs.good.append(_sentence(cells["good"], chosen["good"], place))
        pairs.bad.append(_sentence(cells["bad"], chosen["bad"], place))
        pairs.group.append(str(cells["group"] or stem))
        # One of BLiMP's files spells its field with a slash.
        pairs.field.append(str(cells["field"] or "").replace("/", "_"))
        pairs.places.append(place)


def _sentence(cell: Cell, name: str | None, place: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise InputError(f"{place}: {name} is {cell!r}; a pair needs two sentences")
    return cell
