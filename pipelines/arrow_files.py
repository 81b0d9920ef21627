"""Write and read the contract's Arrow files: equal rows give equal bytes, and a name that exists is a whole file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage
from pipelines.contract import DOCUMENTS_SCHEMA, examples_schema
from pipelines.masking import MaskedExamples

DOCUMENTS_PER_BATCH = 1024
EXAMPLES_PER_BATCH = 8192


def write_table(uri: str, table: pa.Table, rows_per_batch: int) -> None:
    """Write a table as an Arrow IPC file with batches of a fixed number of rows."""
    with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)


def read_table(uri: str) -> pa.Table:
    """Read a whole Arrow IPC file; a local one is memory-mapped."""
    filesystem, path = storage.filesystem_of(uri)
    if storage.is_local(uri):
        return pa.ipc.open_file(pa.memory_map(path)).read_all()
    with filesystem.open_input_file(path) as stream:
        return pa.ipc.open_file(stream).read_all()


def documents_table(doc_ids: Sequence[bytes], sources: Sequence[str], sentences: pa.Array) -> pa.Table:
    """Put the columns of a documents shard together; the dictionary of sources is in order of first appearance."""
    dictionary: dict[str, int] = {}
    indices = [dictionary.setdefault(source, len(dictionary)) for source in sources]
    source_column = pa.DictionaryArray.from_arrays(
        pa.array(indices, pa.int32()), pa.array(list(dictionary), pa.string())
    )
    columns = [pa.array(doc_ids, DOCUMENTS_SCHEMA.field("doc_id").type), source_column, sentences]
    return pa.Table.from_arrays(columns, schema=DOCUMENTS_SCHEMA)


def examples_table(examples: MaskedExamples, vocabulary_size: int, metadata: dict[str, str]) -> pa.Table:
    """Wrap the arrays of masked examples as the contract's columns, in batches that each start at offset zero."""
    schema = examples_schema(vocabulary_size, metadata)
    return pa.Table.from_batches(list(_batches(examples, schema)), schema=schema)


def _batches(examples: MaskedExamples, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    num_rows = len(examples.next_sentence_label)
    id_type = schema.field("input_ids").type.value_type.to_pandas_dtype()
    for start in range(0, num_rows, EXAMPLES_PER_BATCH):
        stop = min(start + EXAMPLES_PER_BATCH, num_rows)
        columns = [
            _lists(examples.input_ids, examples.offsets, start, stop, id_type),
            pa.array(examples.segment_b_start[start:stop]),
            _lists(examples.masked_lm_positions, examples.masked_lm_offsets, start, stop, np.uint16),
            _lists(examples.masked_lm_ids, examples.masked_lm_offsets, start, stop, id_type),
            pa.array(examples.next_sentence_label[start:stop]),
        ]
        yield pa.RecordBatch.from_arrays(
            [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
        )


def _lists(
    values: NDArray[np.generic], offsets: NDArray[np.int64], start: int, stop: int, dtype: type[np.generic]
) -> pa.Array:
    first, last = offsets[start], offsets[stop]
    relative = (offsets[start : stop + 1] - first).astype(np.int32)
    flat = pa.array(values[first:last].astype(dtype, copy=False))
    return pa.ListArray.from_arrays(pa.array(relative), flat)
