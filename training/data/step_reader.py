"""The batches of each step, gathered from memory-mapped examples without a Python loop over rows.

One window of the global order (training/data/ordering.py) is copied into memory block by block, by sequential reads;
batches are then gathered from it. Every rank reads the same windows and is dealt its part of each global batch, so
the set of samples of a step does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from training.bert.packing import pack
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch, StepBatch
from training.data.dynamic_masking import KeyArray, row_keys
from training.data.next_tokens import Targets
from training.data.ordering import GlobalOrder, IntArray, Window, dealt_rows, share_of
from training.data.prefetching import prefetched
from training.data.rows import Rows

PREFETCHED_STEPS = 2
PREFETCHED_WINDOWS = 3
"""Windows whose shards are copied from a remote workspace before their rows are read, the first of them included."""


@dataclass(frozen=True)
class Deal:
    """How steps are distributed over the ranks, and in which form.

    micro_batches: parts of each rank's share of a step, at least one row each. device: where they are computed; for a
    GPU they are pinned. with_plan: as in training/bert/packing.py, `pack`.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"
    with_plan: bool = True
    micro_batches: int = 1

    @property
    def parts(self) -> int:
        """Micro-batches of a step over all ranks."""
        return self.world_size * self.micro_batches

    @property
    def own(self) -> range:
        """Indices of this rank's micro-batches."""
        return range(self.rank * self.micro_batches, (self.rank + 1) * self.micro_batches)


@dataclass(frozen=True)
class _Samples:
    """Rows in memory that batches are gathered from.

    num_predictions: [rows]. keys: [rows] if what they predict is chosen at reading (they are then unmasked), else None.
    """

    rows: Rows
    num_predictions: IntArray
    keys: KeyArray | None

    @staticmethod
    def of(rows: Rows, row_numbers: IntArray, targets: Targets | None, *stream: int | str) -> _Samples:
        """Prepare rows copied by `read`; `stream` and the row numbers key their masks."""
        if targets is None:
            return _Samples(rows, rows.masked_lm_positions.lengths(), None)
        rows = rows.without_masks()
        keys = row_keys(row_numbers, *stream)
        num_predictions = targets.num_predictions(rows.input_ids.values, rows.input_ids.offsets, keys)
        return _Samples(rows, num_predictions, keys)

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

    def micro_batch(self, places: IntArray, targets: Targets | None, deal: Deal) -> MicroBatch:
        """Gather, mask and pack rows, longest first, so that sequences of one length are contiguous."""
        own = self.take(places[np.argsort(-self.rows.input_ids.lengths_of(places), kind="stable")])
        input_ids, lengths = own.rows.input_ids.values, own.rows.input_ids.lengths()
        if targets is None:
            positions, masked_ids = own.rows.flat_masked_positions(), own.rows.masked_lm_ids.values
        else:
            assert own.keys is not None
            positions, masked_ids = targets.apply(input_ids, lengths, own.keys, own.num_predictions)
        segment_b_start = own.rows.segment_b_start.astype(np.int64)
        batch = MicroBatch(
            sequences=pack(input_ids, lengths, segment_b_start, deal.with_plan),
            masked_lm_positions_M=torch.from_numpy(positions),
            masked_lm_ids_M=torch.from_numpy(masked_ids.astype(np.int64)),
            next_sentence_label_B=torch.from_numpy(own.rows.next_sentence_label.astype(np.int64)),
        )
        return batch.pinned() if torch.device(deal.device).type == "cuda" else batch


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
    """The part of a global batch in one window: places first to last of its shuffled order."""

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
    """The step batches of one rank from a global position, prepared by a thread a few steps ahead."""

    def __init__(
        self,
        examples: ArrowExamples,
        order: GlobalOrder,
        global_batch_size: int | None,
        deal: Deal | None = None,
        *,
        global_batch_tokens: int | None = None,
        targets: Targets | None = None,
        batch_at: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        """Read steps of a fixed number of sequences, or up to a number of tokens.

        Args:
            examples: the rows to read.
            order: the global order.
            global_batch_size: sequences of a step over all ranks; None with `global_batch_tokens`.
            deal: how each step is distributed; None gives a single rank all of it at once.
            global_batch_tokens: maximum tokens of a step over all ranks; enough for each part to get a row of the
                maximum length.
            targets: chooses what is predicted, masks anew in each epoch; None uses the written masks.
            batch_at: sequences of a step and micro-batches of each rank, by the number of steps before it, where they
                differ from `global_batch_size` and `deal`.
        """
        assert (global_batch_size is None) != (global_batch_tokens is None), "sequences or tokens, one of both"
        assert targets is not None or not examples.is_unmasked, "nothing is masked"
        self._examples, self._order, self._deal = examples, order, deal or Deal()
        self._global_batch_size, self._global_batch_tokens = global_batch_size, global_batch_tokens
        self._targets, self._batch_at = targets, batch_at
        assert global_batch_size is None or global_batch_size >= self._deal.parts
        self._loaded: _LoadedWindow | None = None

    def steps(self, position: int, count: int, first_step: int = 0) -> Generator[StepBatch, None, None]:
        """Batches of `count` steps, starting at global sample `position`; close it when stopping early.

        `first_step` is the number of steps before them, which only `batch_at` depends on.
        """
        return prefetched(self._steps(position, count, first_step), PREFETCHED_STEPS)

    def _steps(self, position: int, count: int, first_step: int) -> Iterator[StepBatch]:
        for index in range(first_step, first_step + count):
            step = self.step_at(position, index)
            position = step.next_position
            yield step

    def step_at(self, position: int, index: int = 0) -> StepBatch:
        """This rank's part of the step whose global batch starts at sample `position`, after `index` other steps."""
        size, deal = self._global_batch_size, self._deal
        if self._batch_at is not None:
            size, micro_batches = self._batch_at(index)
            deal = replace(deal, micro_batches=micro_batches)
        pieces = self._pieces(position, size)
        lengths = np.concatenate([piece.lengths for piece in pieces])
        parts, own = deal.parts, deal.own
        assert len(lengths) >= parts, "a micro-batch is empty: global_batch_tokens is too small"
        return StepBatch(
            micro_batches=tuple(self._micro_batch(pieces, dealt_rows(lengths, part, parts)) for part in own),
            global_masked_tokens=sum(piece.num_predictions for piece in pieces),
            global_sequences=len(lengths),
            global_tokens=sum(piece.num_tokens for piece in pieces),
            global_squared_tokens=int((lengths**2).sum()),
            next_position=position + len(lengths),
        )

    def _micro_batch(self, pieces: list[_Piece], rows: IntArray) -> MicroBatch:
        """Build a micro-batch from rows of the global batch, given by their places in it."""
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
        return samples.micro_batch(places, self._targets, self._deal)

    def _pieces(self, position: int, rows_left: int | None) -> list[_Piece]:
        """The complete global batch: the next samples that fit in the step, window by window."""
        pieces: list[_Piece] = []
        tokens_left = self._global_batch_tokens
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

    def prefetch(self, position: int) -> None:
        """Start to copy the shards of the windows from a position on, if they are remote."""
        if self._examples.is_remote:
            self._examples.prefetch(self._order.blocks_from(position, PREFETCHED_WINDOWS))

    def _load(self, position: int) -> _LoadedWindow:
        epoch, within_epoch = divmod(position, self._order.num_rows)
        if self._loaded is None or not self._loaded.holds(epoch, within_epoch):
            window = self._order.window_at(position)
            self.prefetch(position)
            rows = self._examples.read(window.blocks)
            stream = (self._order.seed, self._order.stream, epoch)
            samples = _Samples.of(rows, window.laid_out(), self._targets, *stream)
            _require_something_to_predict(self._examples, samples, window.laid_out(), self._targets)
            self._loaded = _LoadedWindow.of(window, samples)
        return self._loaded


def _require_something_to_predict(
    examples: ArrowExamples, samples: _Samples, row_numbers: IntArray, targets: Targets | None
) -> None:
    """If what is predicted is chosen at reading, a row may have nothing only where `targets` allows it."""
    if targets is not None and targets.predicts_in_every_row and samples.num_predictions.min() < 1:
        row = int(row_numbers[np.argmin(samples.num_predictions)])
        raise examples.refusal(row, "it has no token that can be masked, only special ones")


def heldout_batches(
    examples: ArrowExamples,
    max_examples: int,
    batch_size: int,
    deal: Deal | None = None,
    targets: Targets | None = None,
) -> Iterator[MicroBatch]:
    """This rank's share of the first `max_examples` rows, in batches; a rank may get none.

    Masks drawn at reading are the same in every evaluation of every run.
    """
    assert targets is not None or not examples.is_unmasked, "nothing is masked"
    deal = deal or Deal()
    first, last = share_of(min(max_examples, examples.num_rows), deal.rank, deal.world_size)
    while first < last:
        end = min(first + batch_size, last)
        row_numbers = np.arange(first, end)
        samples = _Samples.of(examples.read(((first, end),)), row_numbers, targets, "heldout")
        _require_something_to_predict(examples, samples, row_numbers, targets)
        yield samples.micro_batch(np.arange(end - first), targets, deal)
        first = end
