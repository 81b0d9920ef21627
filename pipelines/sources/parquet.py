"""Parquet: one document per row, its text in a column. A row group belongs to the range with its first byte."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_columns import ROWS_PER_BATCH, check_column, column_problem, documents_in
from pipelines.reading.unpacking import UnreadableError, open_file
from pipelines.settings.documents import SourceConfig


class Parquet:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        files = find_files(config.inputs, workspace)
        check_column(files, config, _schema)
        return files

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        try:
            with open_file(file.uri) as stream:
                yield from _rows(pq.ParquetFile(stream), file, config.text_field)
        except pa.ArrowException as error:
            # Every range finds the same damage; only one reports it.
            if file.begins_file:
                yield Reject(file.name, "damaged", str(error))
        except UnreadableError as error:
            yield Reject(file.name, error.reason, error.detail)
        except OSError as error:
            yield Reject(file.name, "damaged", str(error))


def _schema(stream: pa.NativeFile) -> pa.Schema:
    return pq.ParquetFile(stream).schema_arrow


def _rows(parquet: pq.ParquetFile, file: InputFile, column: str) -> Iterator[RawDocument | Reject]:
    problem = column_problem(parquet.schema_arrow, column)
    if problem is not None:
        if file.begins_file:
            yield Reject(file.name, "missing-field", problem)
        return
    end_byte = file.size_bytes if file.end_byte is None else file.end_byte
    first_row = 0
    for index in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(index)
        if file.first_byte <= _first_byte(group) < end_byte:
            row = first_row
            try:
                for batch in parquet.iter_batches(ROWS_PER_BATCH, row_groups=[index], columns=[column]):
                    yield from documents_in(batch.column(0), file, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                yield Reject(f"{file.name}#{row}", "damaged", f"row group {index}, from row {row} on: {error}")
        first_row += group.num_rows


def _first_byte(group: pq.RowGroupMetaData) -> int:
    chunk = group.column(0)
    dictionary: int | None = chunk.dictionary_page_offset
    data: int = chunk.data_page_offset
    return data if dictionary is None else min(dictionary, data)
