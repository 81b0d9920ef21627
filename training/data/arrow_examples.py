"""Memory-mapped Arrow files of examples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import UNMASKED, Split
from pipelines.contract.workspace import length_directory
from training.data.row_checks import RowRules, list_fault, row_fault
from training.data.rows import Rows

_METADATA_OF_A_BIN = ("clozeworks.bin_above", "clozeworks.bin_up_to")


class ArrowExamples:
    """All shards of one split and one maximum length, memory-mapped; rows are numbered across shards."""

    def __init__(
        self, directory: str, manifest: Manifest, split: Split, max_seq_length: int, examples: str | None = None
    ) -> None:
        """Map the shards listed in the manifest; `examples` names one of `examples.sets`.

        Raises:
            InputError: no examples of this length, or a shard is damaged or inconsistent with the others.
        """
        files = manifest.files_of(split, length_directory(max_seq_length, examples))
        if not files:
            of_set = "" if examples is None else f" in the set {examples!r}"
            raise InputError(
                f"{directory}: no {split} examples of max_seq_length = {max_seq_length}{of_set}; add that length to "
                "examples.lengths, or change pretraining.phases"
            )
        self._chunks: list[Rows] = []
        self._files: list[tuple[str, int]] = []
        first_rows = [0]
        self.metadata: dict[str, str] = {}
        for file in files:
            uri = storage.join(directory, file.name)
            self._files.append((uri, first_rows[-1]))
            table = _open_shard(uri, file.size_bytes)
            self._add_metadata(uri, table.schema)
            for batch in table.to_batches():
                if batch.num_rows:
                    self._chunks.append(Rows.of(batch))
                    first_rows.append(first_rows[-1] + batch.num_rows)
        self._first_rows = np.array(first_rows, dtype=np.int64)
        self.num_rows = int(self._first_rows[-1])
        self._rules = RowRules.of(self.metadata, max_seq_length)
        # Each block is checked once, not again in later epochs.
        self._sound_blocks: set[tuple[int, int]] = set()

    def _add_metadata(self, uri: str, schema: pa.Schema) -> None:
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        shared = {name: value for name, value in metadata.items() if name not in _METADATA_OF_A_BIN}
        if len(self._files) > 1 and shared != self.metadata:
            name = next(name for name in {**shared, **self.metadata} if shared.get(name) != self.metadata.get(name))
            raise InputError(
                f"{uri}: {name} is {shared.get(name)!r}, in {self._files[0][0]} it is {self.metadata.get(name)!r}; "
                "the files come from different stages: rebuild the examples stage"
            )
        self.metadata = shared

    @property
    def is_unmasked(self) -> bool:
        """Whether the reader must draw the masks."""
        return self.metadata.get("clozeworks.masking") in UNMASKED

    def read(self, blocks: tuple[tuple[int, int], ...]) -> Rows:
        """Copy runs of consecutive rows, given as (first, past the last), and concatenate them.

        Raises:
            InputError: a row does not fit this length, vocabulary or task; the message names file and row.
        """
        parts: list[Rows] = []
        for first, last in blocks:
            chunk = int(np.searchsorted(self._first_rows, first, side="right")) - 1
            while first < last:
                base, end = int(self._first_rows[chunk]), min(last, int(self._first_rows[chunk + 1]))
                part = self._chunks[chunk].slice(first - base, end - base)
                if what := list_fault(part):
                    raise self.refusal(first, what)
                parts.append(part)
                first, chunk = end, chunk + 1
        rows = Rows.joined(parts)
        if not self._sound_blocks.issuperset(blocks):
            if fault := row_fault(rows, self._rules):
                laid_out = np.concatenate([np.arange(first, last) for first, last in blocks])
                raise self.refusal(int(laid_out[fault[0]]), fault[1])
            self._sound_blocks.update(blocks)
        return rows

    def refusal(self, row: int, what: str) -> InputError:
        """The error for an invalid row, given its number among all rows."""
        uri, first_row = next(file for file in reversed(self._files) if file[1] <= row)
        return InputError(
            f"{uri}, row {row - first_row}: {what}; run clozeworks validate on the workspace, and rebuild the "
            "examples stage"
        )


def _open_shard(uri: str, size_bytes: int) -> pa.Table:
    found_bytes = storage.file_size_bytes(uri)
    if found_bytes != size_bytes:
        raise InputError(
            f"{uri}: has {found_bytes} bytes, but the manifest states {size_bytes}; rebuild the examples stage"
        )
    try:
        with pa.memory_map(storage.local_path(uri)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the examples stage") from error
