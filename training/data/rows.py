"""Rows of examples in memory, column by column, gathered without a Python loop over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.ordering import IntArray


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: row i is values[offsets[i] : offsets[i + 1]]."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[Any]

    def rows(self, first: int, last: int) -> Ragged:
        offsets = self.offsets[first : last + 1].astype(np.int64)
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def lengths(self) -> IntArray:
        lengths: IntArray = self.offsets[1:] - self.offsets[:-1]
        return lengths

    def lengths_of(self, rows: IntArray) -> IntArray:
        lengths: IntArray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def take(self, rows: IntArray) -> Ragged:
        """A copy of some rows, concatenated."""
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if not offsets[-1]:
            # What is masked at reading has no written masks.
            return Ragged(self.values[:0], offsets)
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[source], offsets)

    @staticmethod
    def joined(parts: list[Ragged]) -> Ragged:
        bases = np.cumsum([0] + [len(part.values) for part in parts])
        offsets = [part.offsets[:-1] + base for part, base in zip(parts, bases[:-1], strict=True)]
        return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([*offsets, bases[-1:]]))


@dataclass(frozen=True)
class Rows:
    """Some examples (pipelines.contract.manifest.examples_schema)."""

    input_ids: Ragged
    segment_b_start: npt.NDArray[Any]
    masked_lm_positions: Ragged
    masked_lm_ids: Ragged
    next_sentence_label: npt.NDArray[Any]

    @staticmethod
    def of(batch: pa.RecordBatch) -> Rows:
        """Views of a batch's buffers, without copying: a mapped file is not read yet.

        `to_numpy` would import pandas first, a quarter of a second.
        """

        def ragged(name: str) -> Ragged:
            column = batch.column(name)
            return Ragged(np.from_dlpack(column.values), np.from_dlpack(column.offsets))

        return Rows(
            ragged("input_ids"),
            np.from_dlpack(batch.column("segment_b_start")),
            ragged("masked_lm_positions"),
            ragged("masked_lm_ids"),
            np.from_dlpack(batch.column("next_sentence_label")),
        )

    def slice(self, first: int, last: int) -> Rows:
        return Rows(
            self.input_ids.rows(first, last),
            self.segment_b_start[first:last],
            self.masked_lm_positions.rows(first, last),
            self.masked_lm_ids.rows(first, last),
            self.next_sentence_label[first:last],
        )

    def take(self, rows: IntArray) -> Rows:
        return Rows(
            self.input_ids.take(rows),
            self.segment_b_start[rows],
            self.masked_lm_positions.take(rows),
            self.masked_lm_ids.take(rows),
            self.next_sentence_label[rows],
        )

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """A copy of all rows, concatenated."""
        return Rows(
            Ragged.joined([part.input_ids for part in parts]),
            np.concatenate([part.segment_b_start for part in parts]),
            Ragged.joined([part.masked_lm_positions for part in parts]),
            Ragged.joined([part.masked_lm_ids for part in parts]),
            np.concatenate([part.next_sentence_label for part in parts]),
        )

    def flat_masked_positions(self) -> IntArray:
        """masked_lm_positions counted from the first token of the first row."""
        first_tokens = np.repeat(self.input_ids.offsets[:-1], self.masked_lm_positions.lengths())
        positions: IntArray = self.masked_lm_positions.values + first_tokens
        return positions

    def without_masks(self) -> Rows:
        """Restore the masked tokens, in place, and drop the masked positions."""
        self.input_ids.values[self.flat_masked_positions()] = self.masked_lm_ids.values
        nothing = Ragged(self.masked_lm_ids.values[:0], np.zeros(len(self.segment_b_start) + 1, dtype=np.int64))
        return Rows(self.input_ids, self.segment_b_start, nothing, nothing, self.next_sentence_label)
