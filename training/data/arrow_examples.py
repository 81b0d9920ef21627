"""Arrow files of examples, memory-mapped when a row of theirs is first read."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest
from pipelines.contract.schemas import UNMASKED, Split
from pipelines.contract.workspace import length_directory
from training.data.row_checks import RowRules, list_fault, row_fault
from training.data.rows import Rows

_METADATA_OF_A_BIN = ("clozeworks.bin_above", "clozeworks.bin_up_to")

Blocks = tuple[tuple[int, int], ...]
"""Runs of consecutive rows: (first, past the last)."""


class LocalCopies(Protocol):
    """Verified local copies of the files of a remote directory."""

    def path(self, name: str) -> str:
        """Local path of a file, which is copied first if it is not there."""
        ...

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to copy files, in this order."""
        ...


class ArrowExamples:
    """All shards of one split and one maximum length; rows are numbered across shards, by the manifest's counts."""

    def __init__(
        self,
        directory: str,
        manifest: Manifest,
        split: Split,
        max_seq_length: int,
        examples: str | None = None,
        copies: LocalCopies | None = None,
    ) -> None:
        """Find the shards listed in the manifest; `examples` names one of `examples.sets`.

        Local shards are mapped at once. Of a remote directory each shard is copied by `copies` and mapped when the
        first of its rows is read.

        Raises:
            InputError: no examples of this length, or a local shard is damaged or inconsistent with the others.
        """
        files = manifest.files_of(split, length_directory(max_seq_length, examples))
        if not files:
            of_set = "" if examples is None else f" in the set {examples!r}"
            raise InputError(
                f"{directory}: no {split} examples of max_seq_length = {max_seq_length}{of_set}; add that length to "
                "examples.lengths, or change pretraining.phases"
            )
        self._copies = copies
        self._shards: list[_Shard] = []
        self.num_rows = 0
        for file in files:
            self._shards.append(_Shard(storage.join(directory, file.name), file, self.num_rows))
            self.num_rows += file.rows
        self._first_rows = np.array([shard.first_row for shard in self._shards], dtype=np.int64)
        self.metadata: dict[str, str] = {}
        for shard in self._shards if copies is None else self._shards[:1]:
            self._open(shard)
        self._rules = RowRules.of(self.metadata, max_seq_length)
        # Each block is checked once, not again in later epochs.
        self._sound_blocks: set[tuple[int, int]] = set()

    def _open(self, shard: _Shard) -> None:
        schema = shard.open(None if self._copies is None else self._copies.path(shard.record.name))
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        shared = {name: value for name, value in metadata.items() if name not in _METADATA_OF_A_BIN}
        if shard is self._shards[0]:
            self.metadata = shared
        elif shared != self.metadata:
            name = next(name for name in {**shared, **self.metadata} if shared.get(name) != self.metadata.get(name))
            raise InputError(
                f"{shard.uri}: {name} is {shared.get(name)!r}, in {self._shards[0].uri} it is "
                f"{self.metadata.get(name)!r}; the files come from different stages: rebuild the examples stage"
            )

    @property
    def is_unmasked(self) -> bool:
        """Whether the reader must draw the masks."""
        return self.metadata.get("clozeworks.masking") in UNMASKED

    @property
    def is_remote(self) -> bool:
        """Whether shards are copied when they are needed, so that `prefetch` has an effect."""
        return self._copies is not None

    def prefetch(self, windows: Iterable[Blocks]) -> None:
        """Start to copy the shards of these windows, in the order in which their rows are read."""
        if self._copies is None:
            return
        names: dict[str, None] = {}
        for blocks in windows:
            for first, last in blocks:
                names |= {shard.record.name: None for shard in self._shards_of(first, last) if not shard.is_open}
        if names:
            self._copies.prefetch(list(names))

    def _shards_of(self, first: int, last: int) -> Iterator[_Shard]:
        """The shards of a run of rows, in order; shards without rows are left out."""
        index = int(np.searchsorted(self._first_rows, first, side="right")) - 1
        while index < len(self._shards) and self._shards[index].first_row < last:
            if self._shards[index].record.rows:
                yield self._shards[index]
            index += 1

    def read(self, blocks: Blocks) -> Rows:
        """Copy runs of consecutive rows, given as (first, past the last), and concatenate them.

        Raises:
            InputError: a row does not fit this length, vocabulary or task; the message names file and row. Also a
                shard, as for `__init__`.
        """
        parts: list[Rows] = []
        for first, last in blocks:
            for shard in self._shards_of(first, last):
                if not shard.is_open:
                    self._open(shard)
                for row, part in shard.parts(first, last):
                    if what := list_fault(part):
                        raise self.refusal(row, what)
                    parts.append(part)
        rows = Rows.joined(parts)
        if not self._sound_blocks.issuperset(blocks):
            if fault := row_fault(rows, self._rules):
                laid_out = np.concatenate([np.arange(first, last) for first, last in blocks])
                raise self.refusal(int(laid_out[fault[0]]), fault[1])
            self._sound_blocks.update(blocks)
        return rows

    def refusal(self, row: int, what: str) -> InputError:
        """The error for an invalid row, given its number among all rows."""
        shard = next(shard for shard in reversed(self._shards) if shard.first_row <= row)
        return InputError(
            f"{shard.uri}, row {row - shard.first_row}: {what}; run clozeworks validate on the workspace, and rebuild "
            "the examples stage"
        )


class _Shard:
    """One file: its record, the number of its first row among all rows, and its rows once it is open."""

    def __init__(self, uri: str, record: FileRecord, first_row: int) -> None:
        self.uri, self.record, self.first_row = uri, record, first_row
        self.chunks: list[Rows] = []
        self._ends: list[int] = []
        self.is_open = False

    def open(self, path: str | None) -> pa.Schema:
        """Map the file, from a local copy if there is one.

        Raises:
            InputError: it is damaged, or has another number of rows than the manifest states.
        """
        table = _open_shard(self.uri, self.record.size_bytes, path)
        if table.num_rows != self.record.rows:
            raise InputError(
                f"{self.uri}: has {table.num_rows} rows, but the manifest states {self.record.rows}; rebuild the "
                "examples stage"
            )
        end = self.first_row
        for batch in table.to_batches():
            if batch.num_rows:
                end += batch.num_rows
                self.chunks.append(Rows.of(batch))
                self._ends.append(end)
        self.is_open = True
        return table.schema

    def parts(self, first: int, last: int) -> Iterator[tuple[int, Rows]]:
        """The rows from `first` to before `last` that this file has, batch by batch, each with its first row."""
        index = bisect.bisect_right(self._ends, first)
        start = self._ends[index - 1] if index else self.first_row
        while index < len(self.chunks) and start < last:
            end = self._ends[index]
            lower, upper = max(first, start), min(last, end)
            yield lower, self.chunks[index].slice(lower - start, upper - start)
            start, index = end, index + 1


def _open_shard(uri: str, size_bytes: int, path: str | None) -> pa.Table:
    found_bytes = storage.file_size_bytes(uri if path is None else path)
    if found_bytes != size_bytes:
        raise InputError(
            f"{uri}: has {found_bytes} bytes, but the manifest states {size_bytes}; rebuild the examples stage"
        )
    try:
        with pa.memory_map(storage.local_path(uri) if path is None else path) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the examples stage") from error
