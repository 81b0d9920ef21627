"""Columns of a table as they are in its file, before labels are interpreted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Cell = Any
"""Text, a number, a truth value, a list of these, or None for a value that is missing."""


@dataclass(frozen=True)
class Columns:
    """The wanted columns of one file that it has, each with one cell per row.

    numbers: of the rows, as a user counts them: lines of a text file from 1, where the row starts; rows of a binary
    file from 1. names: all columns of the file. class_names: names of a column's class numbers, where the file states
    them.
    """

    path: str
    numbers: Sequence[int]
    counts_lines: bool
    names: Sequence[str]
    cells: Mapping[str, list[Cell]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> str:
        """The file and the number of a row, for messages."""
        return f"{self.path}:{self.numbers[row]}" if self.counts_lines else f"{self.path}: row {self.numbers[row]}"

    def chosen(self, rows: Sequence[int]) -> Columns:
        """Some of the rows."""
        numbers = [self.numbers[row] for row in rows]
        cells = {name: [column[row] for row in rows] for name, column in self.cells.items()}
        return replace(self, numbers=numbers, cells=cells)
