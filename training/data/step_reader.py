"""Pre-training examples: memory-mapped Arrow files in, packed batches out, without a Python loop over rows.

One window of the global order (training/data/ordering.py) is copied into memory block by block, which is sequential
reading; batches are then gathered from it. Every rank goes through the same windows and is dealt its part of each
global batch, so the set of samples of a step does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import Split
from pipelines.contract.workspace import length_directory
from training.bert.packing import PackedSequences, pack
from training.data.dynamic_masking import DynamicMasking, KeyArray, row_keys
from training.data.ordering import GlobalOrder, IntArray, Window, deal, share_of
from training.data.prefetching import prefetched
from training.data.row_checks import RowRules, list_fault, row_fault
from training.data.rows import Rows

PREFETCHED_STEPS = 2
_METADATA_OF_A_BIN = ("clozeworks.bin_above", "clozeworks.bin_up_to")


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of the pre-training model reads; suffixes as in training/bert/modeling.py.

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
    """One rank's part of one optimizer step, with the sizes of the whole step over all ranks.

    global_squared_tokens: squares of the rows' lengths, summed: what attention's cost goes by.
    next_position: where in the global order the next step begins; with it a checkpoint resumes.
    """

    micro_batches: tuple[MicroBatch, ...]
    global_masked_tokens: int
    global_sequences: int
    global_tokens: int
    global_squared_tokens: int
    next_position: int


class ArrowExamples:
    """All shards of one split and one maximum length, memory-mapped; rows are numbered through in shard order."""

    def __init__(self, directory: str, manifest: Manifest, split: Split, max_seq_length: int) -> None:
        """Map the shards that the manifest names.

        Raises:
            InputError: there are no examples of this length, a shard is damaged, or made in another way than others.
        """
        files = manifest.files_of(split, length_directory(max_seq_length))
        if not files:
            raise InputError(
                f"{directory}: no {split} examples of max_seq_length = {max_seq_length}; add that length to "
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
        # What has been looked at once is not looked at again in the next epoch.
        self._sound_blocks: set[tuple[int, int]] = set()

    def _add_metadata(self, uri: str, schema: pa.Schema) -> None:
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        shared = {name: value for name, value in metadata.items() if name not in _METADATA_OF_A_BIN}
        if len(self._files) > 1 and shared != self.metadata:
            name = next(name for name in {**shared, **self.metadata} if shared.get(name) != self.metadata.get(name))
            raise InputError(
                f"{uri}: {name} is {shared.get(name)!r}, in {self._files[0][0]} it is {self.metadata.get(name)!r}; "
                "the files are of two stages: rebuild the examples stage"
            )
        self.metadata = shared

    @property
    def is_unmasked(self) -> bool:
        """Do the files leave it to the reader to mask?"""
        return self.metadata.get("clozeworks.masking") == "dynamic"

    def read(self, blocks: tuple[tuple[int, int], ...]) -> Rows:
        """Copy runs of consecutive rows, given as (first, past the last), laid end to end.

        Raises:
            InputError: a row is not one of this length, vocabulary and task; the line names file and row.
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
        """The error for a row that cannot be trained on, by its number among all rows."""
        uri, first_row = next(file for file in reversed(self._files) if file[1] <= row)
        return InputError(
            f"{uri}, row {row - first_row}: {what}; run python -m pipelines.validate on the workspace, and rebuild the "
            "examples stage"
        )


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


@dataclass(frozen=True)
class _Samples:
    """Rows in memory that batches are gathered from.

    num_predictions: [rows]. keys: [rows] where masks are drawn at reading (the rows are then unmasked), else None.
    """

    rows: Rows
    num_predictions: IntArray
    keys: KeyArray | None

    @staticmethod
    def of(rows: Rows, row_numbers: IntArray, masking: DynamicMasking | None, *stream: int | str) -> _Samples:
        """Prepare rows that `read` has copied; `stream` keys their masks, together with their numbers."""
        if masking is None:
            return _Samples(rows, rows.masked_lm_positions.lengths(), None)
        rows = rows.without_masks()
        num_predictions = masking.num_predictions(rows.input_ids.values, rows.input_ids.offsets)
        return _Samples(rows, num_predictions, row_keys(row_numbers, *stream))

    def take(self, places: IntArray) -> _Samples:
        keys = None if self.keys is None else self.keys[places]
        return _Samples(self.rows.take(places), self.num_predictions[places], keys)

    @staticmethod
    def joined(parts: list[_Samples]) -> _Samples:
        keys = [part.keys for part in parts if part.keys is not None]
        return _Samples(
            Rows.joined([part.rows for part in parts]),
            np.concatenate([part.num_predictions for part in parts]),
            np.concatenate(keys) if keys else None,
        )

    def micro_batch(
        self, places: IntArray, masking: DynamicMasking | None, device: torch.device | str, with_plan: bool
    ) -> MicroBatch:
        """Gather, mask and pack rows, longest first, so that sequences of one length lie side by side."""
        own = self.take(places[np.argsort(-self.rows.input_ids.lengths_of(places), kind="stable")])
        input_ids, lengths = own.rows.input_ids.values, own.rows.input_ids.lengths()
        if masking is None:
            positions, masked_ids = own.rows.flat_masked_positions(), own.rows.masked_lm_ids.values
        else:
            assert own.keys is not None
            positions, masked_ids = masking.apply(input_ids, lengths, own.keys, own.num_predictions)
        segment_b_start = own.rows.segment_b_start.astype(np.int64)
        return MicroBatch(
            sequences=pack(input_ids, lengths, segment_b_start, device, with_plan),
            masked_lm_positions_M=torch.from_numpy(positions),
            masked_lm_ids_M=torch.from_numpy(masked_ids.astype(np.int64)),
            next_sentence_label_B=torch.from_numpy(own.rows.next_sentence_label.astype(np.int64)),
        )


@dataclass(frozen=True)
class _LoadedWindow:
    """A window with its rows; the sums [rows + 1] run along its shuffled order."""

    window: Window
    samples: _Samples
    tokens_before: IntArray
    predictions_before: IntArray

    @staticmethod
    def of(window: Window, samples: _Samples) -> _LoadedWindow:
        lengths = samples.rows.input_ids.lengths()[window.order]
        return _LoadedWindow(
            window, samples, _sums_before(lengths), _sums_before(samples.num_predictions[window.order])
        )

    def holds(self, epoch: int, within_epoch: int) -> bool:
        first = self.window.first_position
        return self.window.epoch == epoch and first <= within_epoch < first + len(self.window.order)


def _sums_before(values: IntArray) -> IntArray:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


@dataclass(frozen=True)
class _Piece:
    """The run of a global batch that lies in one window: places first to last of its shuffled order."""

    source: _LoadedWindow
    first: int
    last: int

    @property
    def places(self) -> IntArray:
        return self.source.window.order[self.first : self.last]

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.source.tokens_before[self.first : self.last + 1])

    @property
    def num_tokens(self) -> int:
        return int(self.source.tokens_before[self.last] - self.source.tokens_before[self.first])

    @property
    def num_predictions(self) -> int:
        return int(self.source.predictions_before[self.last] - self.source.predictions_before[self.first])


class StepReader:
    """The step batches of one rank from a global position on, prepared by a thread a few steps ahead."""

    def __init__(
        self,
        examples: ArrowExamples,
        order: GlobalOrder,
        global_batch_size: int | None,
        micro_batches: int,
        rank: int,
        world_size: int,
        device: torch.device | str = "cpu",
        with_plan: bool = True,
        *,
        global_batch_tokens: int | None = None,
        masking: DynamicMasking | None = None,
    ) -> None:
        """Read steps of a number of sequences, or of as many as a number of tokens has room for.

        Args:
            global_batch_size: sequences of a step over all ranks; None with `global_batch_tokens`.
            micro_batches: parts that each rank's share of a step is cut into, each of one row at least.
            device, with_plan: as in training/bert/packing.py, `pack`.
            global_batch_tokens: tokens of a step over all ranks, at most; so many that each part gets a row of the
                maximum length.
            masking: how masks are drawn, anew in each epoch; None takes them as written.
        """
        assert (global_batch_size is None) != (global_batch_tokens is None), "sequences or tokens, one of both"
        assert masking is not None or not examples.is_unmasked, "nothing is masked"
        self._examples, self._order = examples, order
        self._global_batch_size, self._global_batch_tokens = global_batch_size, global_batch_tokens
        self._micro_batches, self._rank, self._parts = micro_batches, rank, world_size * micro_batches
        assert global_batch_size is None or global_batch_size >= self._parts
        self._device, self._with_plan, self._masking = device, with_plan, masking
        self._loaded: _LoadedWindow | None = None

    def steps(self, position: int, count: int) -> Generator[StepBatch, None, None]:
        """Batches of `count` steps, the first of which starts at global sample `position`; close it when done early."""
        return prefetched(self._steps(position, count), PREFETCHED_STEPS)

    def _steps(self, position: int, count: int) -> Iterator[StepBatch]:
        for _ in range(count):
            step = self.step_at(position)
            position = step.next_position
            yield step

    def step_at(self, position: int) -> StepBatch:
        """This rank's part of the step whose global batch starts at sample `position`."""
        pieces = self._pieces(position)
        lengths = np.concatenate([piece.lengths for piece in pieces])
        assert len(lengths) >= self._parts, "a micro-batch is empty: global_batch_tokens is too small"
        parts = range(self._rank * self._micro_batches, (self._rank + 1) * self._micro_batches)
        return StepBatch(
            micro_batches=tuple(self._micro_batch(pieces, deal(lengths, part, self._parts)) for part in parts),
            global_masked_tokens=sum(piece.num_predictions for piece in pieces),
            global_sequences=len(lengths),
            global_tokens=sum(piece.num_tokens for piece in pieces),
            global_squared_tokens=int((lengths**2).sum()),
            next_position=position + len(lengths),
        )

    def _micro_batch(self, pieces: list[_Piece], rows: IntArray) -> MicroBatch:
        """Put together rows of the global batch, given by their places in it."""
        if len(pieces) == 1:
            samples, places = pieces[0].source.samples, pieces[0].places[rows]
        else:
            taken: list[_Samples] = []
            for piece in pieces:
                here = rows[(rows >= 0) & (rows < piece.last - piece.first)]
                taken.append(piece.source.samples.take(piece.places[here]))
                rows = rows - (piece.last - piece.first)
            samples = _Samples.joined(taken)
            places = np.arange(len(samples.num_predictions))
        return samples.micro_batch(places, self._masking, self._device, self._with_plan)

    def _pieces(self, position: int) -> list[_Piece]:
        """The whole global batch: the next samples that the step has room for, window by window."""
        pieces: list[_Piece] = []
        rows_left, tokens_left = self._global_batch_size, self._global_batch_tokens
        while True:
            source = self._load(position)
            first = position % self._order.num_rows - source.window.first_position
            last = len(source.window.order)
            if rows_left is not None:
                last = min(last, first + rows_left)
                rows_left -= last - first
            if tokens_left is not None:
                most = source.tokens_before[first] + tokens_left
                last = int(np.searchsorted(source.tokens_before, most, side="right")) - 1
                tokens_left = int(most - source.tokens_before[last])
            pieces.append(_Piece(source, first, last))
            position += last - first
            if last < len(source.window.order) or rows_left == 0:
                return pieces

    def _load(self, position: int) -> _LoadedWindow:
        epoch, within_epoch = divmod(position, self._order.num_rows)
        if self._loaded is None or not self._loaded.holds(epoch, within_epoch):
            window = self._order.window_at(position)
            rows = self._examples.read(window.blocks)
            stream = (self._order.seed, self._order.stream, epoch)
            samples = _Samples.of(rows, window.laid_out(), self._masking, *stream)
            _require_something_to_predict(self._examples, samples, window.laid_out())
            self._loaded = _LoadedWindow.of(window, samples)
        return self._loaded


def _require_something_to_predict(examples: ArrowExamples, samples: _Samples, row_numbers: IntArray) -> None:
    """Where masks are drawn at reading, every row has to have a token that may be masked."""
    if samples.keys is not None and samples.num_predictions.min() < 1:
        row = int(row_numbers[np.argmin(samples.num_predictions)])
        raise examples.refusal(row, "it has no token that can be masked, only special ones")


def heldout_batches(
    examples: ArrowExamples,
    max_examples: int,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device | str = "cpu",
    with_plan: bool = True,
    masking: DynamicMasking | None = None,
) -> Iterator[MicroBatch]:
    """This rank's share of the first `max_examples` rows, in batches; a rank may get none.

    Where masks are drawn at reading, they are the same in every evaluation of every run.
    """
    assert masking is not None or not examples.is_unmasked, "nothing is masked"
    first, last = share_of(min(max_examples, examples.num_rows), rank, world_size)
    while first < last:
        end = min(first + batch_size, last)
        row_numbers = np.arange(first, end)
        samples = _Samples.of(examples.read(((first, end),)), row_numbers, masking, "heldout")
        _require_something_to_predict(examples, samples, row_numbers)
        yield samples.micro_batch(np.arange(end - first), masking, device, with_plan)
        first = end
