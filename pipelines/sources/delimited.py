"""CSV and TSV: one document per row, its text in a column that the first row names.

A quoted field may hold line ends, so a file is read from its start, row by row; with `quoting = "none"` each line is a
row, and ranges of a file can be read. A row that cannot be read costs itself and is named by its line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_records import Record, RecordShape, read_records
from pipelines.settings.documents import SourceConfig

_QUOTE = '"'
_SHOWN_CHARACTERS = 500
_UNDECODABLE = re.compile("[\udc80-\udcff]")
# Undecodable bytes must not hide where a quoted field ends.
_EVERY_LINE = RecordShape(
    lambda _line, _is_after_blank: True, lambda line: line.endswith((b"\n", b"\r")), "surrogateescape"
)


class Csv:
    """Fields between commas."""

    delimiter = ","

    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        files = find_files(config.inputs, workspace)
        self._check_column(files, config)
        return files

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        header = self._header(file, config)
        if isinstance(header, Reject):
            if file.begins_file:
                yield header
            return
        if header is None:
            return
        if (problem := _column_problem(header, config.text_field)) is not None:
            if file.begins_file:
                yield Reject(file.name, "missing-field", problem)
            return
        column, num_fields = header.fields.index(config.text_field), len(header.fields)
        for row in _rows(file, config, self.delimiter):
            if isinstance(row, Reject):
                yield row
            elif row.first.offset == header.first.offset:
                continue
            elif len(row.fields) != num_fields:
                detail = f"{row.first.place}: {len(row.fields)} fields, but the header has {num_fields}"
                yield Reject(row.first.source, "wrong-fields", detail)
            else:
                yield RawDocument(row.first.source, row.fields[column])

    def _header(self, file: InputFile, config: SourceConfig) -> _Row | Reject | None:
        """The first row; a reject if it cannot be read, None if there is none."""
        whole = replace(file, first_byte=0, end_byte=None)
        return next(_rows(whole, config, self.delimiter), None)

    def _check_column(self, files: list[InputFile], config: SourceConfig) -> None:
        """Look for the column in the first file; an unreadable file is left to the reader, which rejects it.

        Raises:
            InputError: the first row has no such column.
        """
        file = next((file for file in files if file.problem is None), None)
        header = self._header(file, config) if file is not None else None
        if file is None or header is None or isinstance(header, Reject):
            return
        if (problem := _column_problem(header, config.text_field)) is not None:
            raise InputError(
                f"documents.sources: text_field = {config.text_field!r}: {shown(file.uri)} has "
                f"{shown(problem, _SHOWN_CHARACTERS)}"
            )


class Tsv(Csv):
    """Fields between tabs."""

    delimiter = "\t"


class _Row(NamedTuple):
    first: Record
    """Its first line."""
    fields: list[str]


class _LostRowError(Exception):
    """A row has a line that cannot be read, or is too large."""

    def __init__(self, reject: Reject):
        super().__init__(reject.detail)
        self.reject = reject


class _RowLines:
    """The lines of a file as `csv.reader` asks for them: one by one, until a row is complete."""

    def __init__(self, lines: Iterator[Record | Reject], max_bytes: int):
        self._lines = lines
        self._max_bytes = max_bytes
        self._held: list[Record] = []
        self.begin_row()

    def begin_row(self) -> None:
        self.first: Record | None = None
        self.last_line = 0
        self._size_bytes = 0
        self._num_quotes = 0

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line = self._held.pop() if self._held else next(self._lines)
        if isinstance(line, Reject):
            raise _LostRowError(line)
        if self.first is None:
            self.first = line
        elif line.line_number > self.last_line + 1:
            # Blank lines are no records, but within a quoted field they separate paragraphs.
            self._held.append(line)
            self.last_line += 1
            return "\n"
        self.last_line = line.line_number
        self._size_bytes += len(line.text.encode("utf-8", "surrogateescape"))
        self._num_quotes += line.text.count(_QUOTE)
        if self._size_bytes > self._max_bytes:
            detail = f"{self.first.place}: more than max_record_bytes = {self._max_bytes}"
            raise _LostRowError(Reject(self.first.source, "too-large", detail))
        return line.text

    @property
    def place(self) -> str:
        """The lines of the row, for messages."""
        assert self.first is not None
        is_long = self.last_line > self.first.line_number
        return f"{self.first.place} to {self.last_line}" if is_long else self.first.place

    def skip_row(self) -> Iterator[Reject]:
        """Pass over the rest of a row that is too large: it ends where the number of its quotation marks is even."""
        while self._num_quotes % 2:
            line = self._held.pop() if self._held else next(self._lines, None)
            if line is None:
                return
            if isinstance(line, Reject):
                yield line
            else:
                self._num_quotes += line.text.count(_QUOTE)


def _rows(file: InputFile, config: SourceConfig, delimiter: str) -> Iterator[_Row | Reject]:
    """Rows that begin in the file's range, the header among them, without blank ones."""
    is_quoted = config.quoting != "none"
    # A limit of the process; that of a record bounds a field as well.
    csv.field_size_limit(config.max_record_bytes)
    lines = _RowLines(read_records(file, config, _EVERY_LINE), config.max_record_bytes)
    if is_quoted:
        reader = csv.reader(lines, delimiter=delimiter, quotechar=_QUOTE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        lines.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _LostRowError as error:
            yield error.reject
            if is_quoted and error.reject.reason == "too-large":
                yield from lines.skip_row()
        except csv.Error as error:
            assert lines.first is not None
            yield Reject(lines.first.source, "bad-csv", f"{lines.place}: {error}")
        else:
            if lines.first is None or not fields:
                continue
            if _UNDECODABLE.search("".join(fields)):
                yield Reject(lines.first.source, "undecodable", f"{lines.place}: bytes that are not in the encoding")
            else:
                yield _Row(lines.first, fields)


def _column_problem(header: _Row, column: str) -> str | None:
    """Why a column cannot be read, or None."""
    count = header.fields.count(column)
    if count == 1:
        return None
    return f"{count or 'no'} columns of this name; columns there: {', '.join(header.fields)}"
