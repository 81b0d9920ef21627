"""Reads GLUE's own TSV files: no quoting, a byte-order mark in some, no header in CoLA."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.settings.glue import MAX_SCORE, TASKS, Column, Task, task_files

_BLOCK_BYTES = 1 << 22

_Row = tuple[int, list[bytes]]
"""Line number in the file, counted from 1, and the cells."""


@dataclass(frozen=True)
class LabelledText:
    """The rows of one file. labels: class numbers, or scores for regression; None if the file has no labels."""

    sentences_a: list[str]
    sentences_b: list[str] | None
    labels: list[float] | None

    def __len__(self) -> int:
        return len(self.sentences_a)


def read_examples(task: Task, path: str) -> LabelledText:
    """Read a training or development file.

    Raises:
        InputError: the file is missing or empty, or a row has another number of columns or an unknown label.
    """
    return _read(task, path, has_header=task.has_header, labelled=True)


def num_training_rows(name: str, directory: str) -> int:
    """Rows of a task's training file; `directory` is the parent of the task's folder.

    Raises:
        InputError: a file of the task is missing, or the training file has a bad row.
    """
    return len(read_examples(TASKS[name], task_files(name, directory)[0]))


def read_test(task: Task, path: str) -> LabelledText:
    """Read a test file, which has a header and no valid labels.

    Raises:
        InputError: the file is missing or empty, a column is missing, or a row has another number of columns.
    """
    return _read(task, path, has_header=True, labelled=False)


def _read(task: Task, path: str, has_header: bool, labelled: bool) -> LabelledText:
    rows = _rows(path, task)
    columns = [task.sentence_a, *([task.sentence_b] if task.sentence_b else []), *([task.label] if labelled else [])]
    if has_header:
        numbers, width = _header(path, columns, next(rows, None))
    else:
        numbers = [column.number for column in columns if column.number is not None]
        assert len(numbers) == len(columns), task.name
        width = max(numbers) + 1
    # Most of MNLI's columns are parse trees, ten times the sentences: keep only the wanted columns.
    kept: list[list[str]] = [[] for _ in columns]
    labels: list[float] = []
    for line_number, row in rows:
        if len(row) != width:
            if task.skips_broken_rows and labelled:
                continue
            raise InputError(f"{path}:{line_number}: has {len(row)} columns; expected {width}")
        for cells, number in zip(kept, numbers, strict=True):
            cells.append(_text(path, line_number, row[number]))
        if labelled:
            labels.append(_label_of(task, path, line_number, kept[-1].pop()))
    if not kept[0]:
        raise InputError(f"{path}: has no rows; expected tab-separated rows of {task.folder}")
    return LabelledText(kept[0], kept[1] if task.sentence_b else None, labels if labelled else None)


def _rows(path: str, task: Task) -> Iterator[_Row]:
    """All lines split at tabs, without empty ones at the end, which editors and concatenation add.

    Only a line feed ends a line: sentences contain other Unicode line separators.
    """
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing; expected GLUE's own file for {task.folder}")
    empty: list[int] = []
    for line_number, line in enumerate(_lines(path), start=1):
        if line_number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        line = line.removesuffix(b"\r")
        if not line:
            empty.append(line_number)
            continue
        yield from ((number, [b""]) for number in empty)
        empty.clear()
        yield line_number, line.split(b"\t")


def _lines(path: str) -> Iterator[bytes]:
    filesystem, inner_path = storage.filesystem_of(path)
    rest = b""
    with filesystem.open_input_stream(inner_path, compression=None) as stream:
        while block := stream.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
    if rest.strip():
        yield rest


def _header(path: str, columns: list[Column], first: _Row | None) -> tuple[list[int], int]:
    """Numbers of the wanted columns, and the number of columns per row."""
    if first is None:
        raise InputError(f"{path}: is empty; expected a header with {columns[0].name!r}")
    names = [_text(path, 1, cell) for cell in first[1]]
    for column in columns:
        if column.name not in names:
            raise InputError(f"{path}: no column {column.name!r}; its header has {', '.join(names)}")
    return [names.index(column.name) for column in columns], len(names)


def _text(path: str, line_number: int, cell: bytes) -> str:
    try:
        return cell.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{line_number}: {cell[:40]!r} is not UTF-8; expected GLUE's own file") from error


def _label_of(task: Task, path: str, line_number: int, text: str) -> float:
    if task.is_regression:
        try:
            score = float(text)
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: label {text!r} is not a number") from error
        if not (math.isfinite(score) and 0.0 <= score <= MAX_SCORE):
            raise InputError(f"{path}:{line_number}: label {text!r} is outside 0 to {MAX_SCORE:g}")
        return score
    if text not in task.labels:
        raise InputError(f"{path}:{line_number}: label {text!r} is none of {', '.join(task.labels)}")
    return float(task.labels.index(text))
