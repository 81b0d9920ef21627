"""JSON lines: one object per line, its text under a dotted path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_records import Record, RecordShape, read_records
from pipelines.settings.documents import SourceConfig

_RECORDS_LOOKED_AT = 100
_SHOWN_CHARACTERS = 500


class JsonLines:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        files = find_files(config.inputs, workspace)
        _check_field(files, config)
        return files

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        for record in read_records(file, config, LINES):
            yield record if isinstance(record, Reject) else _document(record, config.text_field)


def _begins_line(line: bytes, _is_after_blank: bool) -> bool:
    return not line.isspace()


def _is_whole_line(_line: bytes) -> bool:
    return True


LINES = RecordShape(_begins_line, _is_whole_line)


def parse_object(record: Record) -> dict[str, Any] | Reject:
    """The JSON object on a line."""
    try:
        value = json.loads(record.text.strip())
    except (ValueError, RecursionError) as error:
        return Reject(record.source, "bad-json", f"{record.place}: {_message(error)}")
    if not isinstance(value, dict):
        return Reject(record.source, "bad-json", f"{record.place}: {type(value).__name__}, not an object")
    return value


def text_at(value: dict[str, Any], path: str, record: Record) -> str | Reject:
    """The string under a dotted path."""
    node: Any = value
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            known = f"; fields there: {encodable(', '.join(node))}" if isinstance(node, dict) else ""
            return Reject(record.source, "missing-field", f"{record.place}: no {key!r} of {path!r}{known}")
        node = node[key]
    if not isinstance(node, str):
        return Reject(record.source, "not-a-string", f"{record.place}: {path!r} is {_kind(node)}")
    try:
        node.encode()
    except UnicodeEncodeError as error:
        # JSON can hold half a surrogate pair, but text with it cannot be encoded.
        place = f"{record.place}: half a surrogate pair at character {error.start} of {path!r}"
        return Reject(record.source, "undecodable", place)
    return node


def encodable(text: str) -> str:
    """Text with halves of surrogate pairs written as escapes, for labels and details."""
    return text.encode("utf-8", "backslashreplace").decode()


def _document(record: Record, path: str) -> RawDocument | Reject:
    value = parse_object(record)
    text = value if isinstance(value, Reject) else text_at(value, path, record)
    return text if isinstance(text, Reject) else RawDocument(record.source, text)


def _check_field(files: list[InputFile], config: SourceConfig) -> None:
    """Look for the field in the first records of the first file: if none has it, the recipe is wrong, not the data.

    Raises:
        InputError: records can be read and none has the field.
    """
    file = next((file for file in files if file.problem is None), None)
    if file is None:
        return
    fields: dict[str, None] = {}
    for record in islice(read_records(file, config, LINES), _RECORDS_LOOKED_AT):
        value = record if isinstance(record, Reject) else parse_object(record)
        if isinstance(record, Reject) or isinstance(value, Reject):
            continue
        text = text_at(value, config.text_field, record)
        if not isinstance(text, Reject) or text.reason != "missing-field":
            return
        fields.update(dict.fromkeys(_paths(value)))
    if fields:
        raise InputError(
            f"documents.sources: text_field = {config.text_field!r} is in none of the first records of "
            f"{shown(file.uri)}; fields there: {shown(', '.join(fields), _SHOWN_CHARACTERS)}"
        )


def _paths(value: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, node in value.items():
        yield prefix + key
        if isinstance(node, dict):
            yield from _paths(node, f"{prefix}{key}.")


def _message(error: Exception) -> str:
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
