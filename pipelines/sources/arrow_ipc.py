"""Arrow IPC files and streams: one document per row, its text in a column.

The n record batches of a file are assigned to ranges as if they were of equal size; a stream has no index, so the range
that begins it reads all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_columns import check_column, column_problem, documents_in
from pipelines.reading.unpacking import UnreadableError, open_file
from pipelines.settings.documents import SourceConfig

_FILE_MAGIC = b"ARROW1"


class ArrowIpc:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        files = find_files(config.inputs, workspace)
        check_column(files, config, schema_of)
        return files

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        try:
            with open_file(file.uri) as stream:
                if _is_file(stream):
                    yield from _from_file(stream, file, config.text_field)
                elif file.begins_file:
                    yield from _from_stream(stream, file, config.text_field)
        except pa.ArrowException as error:
            if file.begins_file:
                yield Reject(file.name, "damaged", str(error))
        except UnreadableError as error:
            yield Reject(file.name, error.reason, error.detail)
        except OSError as error:
            yield Reject(file.name, "damaged", str(error))


def schema_of(stream: pa.NativeFile) -> pa.Schema:
    """The schema of an IPC file or stream."""
    return (pa.ipc.open_file if _is_file(stream) else pa.ipc.open_stream)(stream).schema


def _is_file(stream: pa.NativeFile) -> bool:
    magic: bytes = stream.read(len(_FILE_MAGIC))
    stream.seek(0)
    return magic == _FILE_MAGIC


def _from_file(stream: pa.NativeFile, file: InputFile, column: str) -> Iterator[RawDocument | Reject]:
    reader = pa.ipc.open_file(stream)
    problem = column_problem(reader.schema, column)
    if problem is not None:
        if file.begins_file:
            yield Reject(file.name, "missing-field", problem)
        return
    end_byte = file.size_bytes if file.end_byte is None else file.end_byte
    num_batches = reader.num_record_batches
    for index in range(num_batches):
        if file.first_byte <= file.size_bytes * index // num_batches < end_byte:
            try:
                array = reader.get_batch(index).column(column)
            except (pa.ArrowException, OSError) as error:
                yield Reject(f"{file.name}#{index}", "damaged", f"record batch {index}: {error}")
            else:
                yield from documents_in(array, file, 0, f"{index}.")


def _from_stream(stream: pa.NativeFile, file: InputFile, column: str) -> Iterator[RawDocument | Reject]:
    reader = pa.ipc.open_stream(stream)
    problem = column_problem(reader.schema, column)
    if problem is not None:
        yield Reject(file.name, "missing-field", problem)
        return
    index = 0
    try:
        for batch in reader:
            yield from documents_in(batch.column(column), file, 0, f"{index}.")
            index += 1
    except (pa.ArrowException, OSError) as error:
        yield Reject(file.name, "truncated", f"from record batch {index} on: {error}")
