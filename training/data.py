"""Pre-training examples: memory-mapped Arrow files in, packed batches out, without a Python loop over rows.

One window of the global order (training/ordering.py) is copied into memory block by block, which is sequential
reading; batches are then gathered from it. Every rank goes through the same windows and takes its slice of each
global batch, so the set of samples of a step does not depend on the number of ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipelines import storage
from pipelines.contract import Manifest, Split, length_directory
from pipelines.recipe import InputError
from training.ordering import GlobalOrder, IntArray, Window, share_of
from training.packing import PackedSequences, pack

PREFETCHED_STEPS = 2


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of the pre-training model reads; suffixes as in training/modeling.py.

    masked_lm_positions_M (flat, among T tokens), masked_lm_ids_M: [M] int64. next_sentence_label_B: [B] int64.
    """

    sequences: PackedSequences
    masked_lm_positions_M: torch.Tensor
    masked_lm_ids_M: torch.Tensor
    next_sentence_label_B: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        if self.masked_lm_ids_M.device == device:
            return self
        return replace(
            self,
            sequences=self.sequences.to(device),
            masked_lm_positions_M=self.masked_lm_positions_M.to(device, non_blocking=True),
            masked_lm_ids_M=self.masked_lm_ids_M.to(device, non_blocking=True),
            next_sentence_label_B=self.next_sentence_label_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one optimizer step, with the sizes of the whole step over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    global_masked_tokens: int
    global_sequences: int
    global_tokens: int


@dataclass(frozen=True)
class _Ragged:
    """Rows of unequal length: row i is values[offsets[i] : offsets[i + 1]]."""

    values: npt.NDArray[Any]
    offsets: IntArray

    def rows(self, first: int, last: int) -> _Ragged:
        offsets = self.offsets[first : last + 1]
        return _Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: IntArray) -> tuple[npt.NDArray[Any], IntArray]:
        """Values of the rows laid end to end, and their lengths."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        source = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        return self.values[source], lengths


def _join(parts: list[_Ragged]) -> _Ragged:
    bases = np.cumsum([0] + [len(part.values) for part in parts])
    offsets = [part.offsets[:-1] + base for part, base in zip(parts, bases[:-1], strict=True)]
    return _Ragged(np.concatenate([part.values for part in parts]), np.concatenate([*offsets, bases[-1:]]))


@dataclass(frozen=True)
class Rows:
    """Some examples in memory, column by column (pipelines.contract.examples_schema)."""

    input_ids: _Ragged
    segment_b_start: npt.NDArray[Any]
    masked_lm_positions: _Ragged
    masked_lm_ids: _Ragged
    next_sentence_label: npt.NDArray[Any]

    def slice(self, first: int, last: int) -> Rows:
        return Rows(
            self.input_ids.rows(first, last),
            self.segment_b_start[first:last],
            self.masked_lm_positions.rows(first, last),
            self.masked_lm_ids.rows(first, last),
            self.next_sentence_label[first:last],
        )

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        return Rows(
            _join([part.input_ids for part in parts]),
            np.concatenate([part.segment_b_start for part in parts]),
            _join([part.masked_lm_positions for part in parts]),
            _join([part.masked_lm_ids for part in parts]),
            np.concatenate([part.next_sentence_label for part in parts]),
        )

    def micro_batch(self, rows: IntArray, device: torch.device | str, with_plan: bool) -> MicroBatch:
        """Gather and pack rows, longest first, so that sequences of one length lie side by side."""
        lengths = self.input_ids.offsets[rows + 1] - self.input_ids.offsets[rows]
        rows = rows[np.argsort(-lengths, kind="stable")]
        input_ids, lengths = self.input_ids.take(rows)
        positions, counts = self.masked_lm_positions.take(rows)
        masked_ids, _ = self.masked_lm_ids.take(rows)
        first_tokens = np.cumsum(lengths) - lengths
        flat_positions = positions.astype(np.int64) + np.repeat(first_tokens, counts)
        return MicroBatch(
            sequences=pack(input_ids, lengths, self.segment_b_start[rows].astype(np.int64), device, with_plan),
            masked_lm_positions_M=torch.from_numpy(flat_positions),
            masked_lm_ids_M=torch.from_numpy(masked_ids.astype(np.int64)),
            next_sentence_label_B=torch.from_numpy(self.next_sentence_label[rows].astype(np.int64)),
        )


class ArrowExamples:
    """All shards of one split and one maximum length, memory-mapped; rows are numbered through in shard order."""

    def __init__(self, directory: str, manifest: Manifest, split: Split, max_seq_length: int) -> None:
        """Map the shards that the manifest names.

        Raises:
            InputError: there are no examples of this length, or a shard is damaged.
        """
        files = manifest.files_of(split, length_directory(max_seq_length))
        if not files:
            raise InputError(
                f"{directory}: no {split} examples of max_seq_length = {max_seq_length}; add that length to "
                "examples.lengths, or change pretraining.phases"
            )
        self._chunks: list[Rows] = []
        first_rows = [0]
        self.metadata: dict[str, str] = {}
        for file in files:
            table = _open_shard(storage.join(directory, file.name), file.size_bytes)
            self.metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            for batch in table.to_batches():
                if batch.num_rows:
                    self._chunks.append(_columns_of(batch))
                    first_rows.append(first_rows[-1] + batch.num_rows)
        self._first_rows = np.array(first_rows, dtype=np.int64)
        self.num_rows = int(self._first_rows[-1])

    def read(self, blocks: tuple[tuple[int, int], ...]) -> Rows:
        """Copy runs of consecutive rows, given as (first, past the last), laid end to end."""
        parts: list[Rows] = []
        for first, last in blocks:
            chunk = int(np.searchsorted(self._first_rows, first, side="right")) - 1
            while first < last:
                base, end = int(self._first_rows[chunk]), min(last, int(self._first_rows[chunk + 1]))
                parts.append(self._chunks[chunk].slice(first - base, end - base))
                first, chunk = end, chunk + 1
        return Rows.joined(parts)


def _open_shard(uri: str, size_bytes: int) -> pa.Table:
    found_bytes = storage.file_size_bytes(uri)
    if found_bytes != size_bytes:
        raise InputError(
            f"{uri}: has {found_bytes} bytes where the manifest states {size_bytes}; rebuild the examples stage"
        )
    try:
        with pa.memory_map(storage.local_path(uri)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the examples stage") from error


def _columns_of(batch: pa.RecordBatch) -> Rows:
    def ragged(name: str) -> _Ragged:
        column = batch.column(name)
        offsets = column.offsets.to_numpy().astype(np.int64)
        return _Ragged(column.values.to_numpy(), offsets)

    def plain(name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = batch.column(name).to_numpy()
        return values

    return Rows(
        ragged("input_ids"),
        plain("segment_b_start"),
        ragged("masked_lm_positions"),
        ragged("masked_lm_ids"),
        plain("next_sentence_label"),
    )


class StepReader:
    """The step batches of one rank from a global position on, prepared by a thread a few steps ahead."""

    def __init__(
        self,
        examples: ArrowExamples,
        order: GlobalOrder,
        global_batch_size: int,
        micro_batches: int,
        rank: int,
        world_size: int,
        device: torch.device | str = "cpu",
        with_plan: bool = True,
    ) -> None:
        assert global_batch_size >= world_size * micro_batches
        self._examples, self._order = examples, order
        self._global_batch_size, self._micro_batches = global_batch_size, micro_batches
        self._rank, self._world_size = rank, world_size
        self._device, self._with_plan = device, with_plan
        self._window: Window | None = None
        self._rows: Rows | None = None

    def steps(self, position: int, count: int) -> Iterator[StepBatch]:
        """Batches of `count` steps, the first of which starts at global sample `position`."""
        finished = threading.Event()
        ready: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=PREFETCHED_STEPS)

        def produce() -> None:
            item: StepBatch | BaseException
            for step in range(count):
                try:
                    item = self.step_at(position + step * self._global_batch_size)
                except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                    item = error
                while not finished.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if finished.is_set() or isinstance(item, BaseException):
                    return

        producer = threading.Thread(target=produce, name="examples", daemon=True)
        producer.start()
        try:
            for _ in range(count):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # A thread that is still inside torch while the interpreter shuts down aborts the process.
            finished.set()
            producer.join()

    def step_at(self, position: int) -> StepBatch:
        """This rank's part of the step whose global batch starts at sample `position`."""
        rows, places = self._gather(position)
        first, last = share_of(len(places), self._rank, self._world_size)
        own = places[first:last]
        shares = (share_of(len(own), index, self._micro_batches) for index in range(self._micro_batches))
        batches = (rows.micro_batch(own[start:end], self._device, self._with_plan) for start, end in shares)
        return StepBatch(
            micro_batches=tuple(batches),
            global_masked_tokens=_total_length(rows.masked_lm_ids, places),
            global_sequences=len(places),
            global_tokens=_total_length(rows.input_ids, places),
        )

    def _gather(self, position: int) -> tuple[Rows, IntArray]:
        """Rows that hold the whole global batch, and where in them its samples are, in order."""
        pieces: list[tuple[Rows, IntArray]] = []
        missing = self._global_batch_size
        while missing:
            window, rows = self._load(position)
            offset = position % self._order.num_rows - window.first_position
            places = window.order[offset : offset + missing]
            pieces.append((rows, places))
            position, missing = position + len(places), missing - len(places)
        if len(pieces) == 1:
            return pieces[0]
        # A batch that crosses windows is rare: lay its own rows out anew.
        parts = [Rows.joined([rows.slice(place, place + 1) for place in places]) for rows, places in pieces]
        return Rows.joined(parts), np.arange(self._global_batch_size)

    def _load(self, position: int) -> tuple[Window, Rows]:
        epoch, within_epoch = divmod(position, self._order.num_rows)
        window, rows = self._window, self._rows
        if (
            window is None
            or rows is None
            or window.epoch != epoch
            or not 0 <= within_epoch - window.first_position < len(window.order)
        ):
            window = self._order.window_at(position)
            rows = self._examples.read(window.blocks)
            self._window, self._rows = window, rows
        return window, rows


def _total_length(column: _Ragged, rows: IntArray) -> int:
    return int((column.offsets[rows + 1] - column.offsets[rows]).sum())


def heldout_batches(
    examples: ArrowExamples,
    max_examples: int,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device | str = "cpu",
    with_plan: bool = True,
) -> Iterator[MicroBatch]:
    """This rank's share of the first `max_examples` rows, in batches; a rank may get none."""
    first, last = share_of(min(max_examples, examples.num_rows), rank, world_size)
    while first < last:
        end = min(first + batch_size, last)
        rows = examples.read(((first, end),))
        yield rows.micro_batch(np.arange(end - first), device, with_plan)
        first = end
