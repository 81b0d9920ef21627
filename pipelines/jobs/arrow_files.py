"""Write and read the contract's Arrow files: equal rows give equal bytes, and files appear only when complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipelines.contract import storage

DOCUMENTS_PER_BATCH = 1024


def write_table(uri: str, table: pa.Table, rows_per_batch: int) -> None:
    """Write a table as an Arrow IPC file with batches of a fixed number of rows."""
    with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)


@contextmanager
def open_arrow(uri: str) -> Iterator[pa.RecordBatchFileReader]:
    """Open an Arrow IPC file, to read single batches; a local one is memory-mapped."""
    if storage.is_local(uri):
        with pa.memory_map(storage.local_path(uri)) as stream:
            yield pa.ipc.open_file(stream)
        return
    filesystem, path = storage.filesystem_of(uri)
    with filesystem.open_input_file(path) as stream:
        yield pa.ipc.open_file(stream)


def read_table(uri: str) -> pa.Table:
    """Read a complete Arrow IPC file; a local one is memory-mapped."""
    with open_arrow(uri) as file:
        return file.read_all()
