"""Shared by tabular formats: find the text's column, and turn its values into documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.unpacking import UnreadableError, open_file
from pipelines.settings.documents import SourceConfig

ROWS_PER_BATCH = 256


def check_column(files: list[InputFile], config: SourceConfig, schema_of: Callable[[pa.NativeFile], pa.Schema]) -> None:
    """Look for the column in the first file; an unreadable file is left to the reader, which rejects it.

    Raises:
        InputError: the file has no such column, or it holds no text.
    """
    file = next((file for file in files if file.problem is None), None)
    if file is None:
        return
    try:
        with open_file(file.uri) as stream:
            problem = column_problem(schema_of(stream), config.text_field)
    except (UnreadableError, pa.ArrowException, OSError):
        return
    if problem is not None:
        raise InputError(
            f"documents.sources: text_field = {config.text_field!r}: {shown(file.uri)} has {shown(problem)}"
        )


def column_problem(schema: pa.Schema, column: str) -> str | None:
    """Why a column cannot be read as text, or None."""
    places = schema.get_all_field_indices(column)
    if len(places) != 1:
        return f"{len(places) or 'no'} columns of this name; columns there: {', '.join(schema.names)}"
    column_type = schema.field(places[0]).type
    value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    if _is_text(value_type):
        return None
    texts = [field.name for field in schema if _is_text(field.type)]
    return f"{column_type} in this column, not text; text is in: {', '.join(texts) or 'none'}"


def documents_in(array: pa.Array, file: InputFile, first_row: int, prefix: str = "") -> Iterator[RawDocument | Reject]:
    """Documents of a column's values; a row is named `file#prefix + row`."""
    if pa.types.is_dictionary(array.type):
        array = pc.cast(array, array.type.value_type)
    for row, value in enumerate(array.cast(pa.large_binary()), start=first_row):
        source = f"{file.name}#{prefix}{row}"
        data = value.as_py()
        if data is None:
            yield Reject(source, "not-a-string", f"row {row}: null")
            continue
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            yield Reject(source, "undecodable", f"row {row}: not UTF-8 at byte {error.start}: {error.reason}")
        else:
            yield RawDocument(source, text)


def _is_text(value_type: pa.DataType) -> bool:
    return any(
        check(value_type)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )
