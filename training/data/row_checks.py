"""Checks of rows of examples before they are trained on, vectorized over many rows.

A row that breaks these rules either ends a run far from its cause (an id beyond the vocabulary is an IndexError, on a
GPU a device assertion) or silently trains a wrong model. The rules are those of
pipelines.contract.manifest.examples_schema; `pipelines.validate` checks more, and reads everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contract.errors import InputError
from training.data.rows import Ragged, Rows

_SHORTEST_PAIR, _SHORTEST_TEXT = 5, 3
"""[CLS] a [SEP] b [SEP], and [CLS] a [SEP]."""
_LARGEST_VOCABULARY = 1 << 32
_LISTS = ("input_ids", "masked_lm_positions", "masked_lm_ids")


@dataclass(frozen=True)
class RowRules:
    """Rules for the rows of one length.

    has_pairs: rows are next-sentence pairs. is_masked: every row has at least one masked token.
    """

    vocab_size: int
    max_seq_length: int
    has_pairs: bool
    is_masked: bool

    @staticmethod
    def of(metadata: Mapping[str, str], max_seq_length: int) -> RowRules:
        """The rules from a file's schema metadata.

        Raises:
            InputError: the recorded vocabulary size is not a number.
        """
        size = metadata.get("clozeworks.vocabulary_size", str(_LARGEST_VOCABULARY))
        if not size.isdecimal():
            raise InputError(f"metadata clozeworks.vocabulary_size is {size!r}, not a number; rebuild the stage")
        return RowRules(
            vocab_size=int(size),
            max_seq_length=max_seq_length,
            has_pairs=metadata.get("clozeworks.next_sentence", "true") == "true",
            # Whole-word masking may find no maskable word in a row of long words.
            is_masked=metadata.get("clozeworks.masking", "static") == "static",
        )


def list_fault(rows: Rows) -> str | None:
    """Lists that extend beyond their column's values; checked before rows are joined, which would hide it."""
    for name in _LISTS:
        column: Ragged = getattr(rows, name)
        if len(column.values) != column.offsets[-1]:
            return f"the lists of {name} extend beyond the column's values, in this row or a later one"
    return None


def row_fault(rows: Rows, rules: RowRules) -> tuple[int, str] | None:
    """The first of many concatenated rows that breaks the contract, and how; None if all are valid.

    Nearly all rows are valid and the check must cost little, so each rule is first tested on the extremes of a
    column; the row is located only if that fails.
    """
    lengths, positions = rows.input_ids.lengths(), rows.masked_lm_positions
    per_row, labels, starts_of_b = positions.lengths(), rows.next_sentence_label, rows.segment_b_start
    shortest, largest_label = (_SHORTEST_PAIR, 1) if rules.has_pairs else (_SHORTEST_TEXT, 0)
    first_b, tokens_after = (3, 2) if rules.has_pairs else (0, 0)
    fewest = 1 if rules.is_masked else 0
    behind_b = lengths - starts_of_b
    faults = [_id_fault(name, getattr(rows, name), rules) for name in ("input_ids", "masked_lm_ids")]
    if lengths.max() > rules.max_seq_length or lengths.min() < shortest:
        is_wrong = (lengths > rules.max_seq_length) | (lengths < shortest)
        faults.append(_named(is_wrong, f"its length is not in {shortest} to max_seq_length = {rules.max_seq_length}"))
    if starts_of_b.min() < first_b or behind_b.min() < tokens_after:
        faults.append(_named((starts_of_b < first_b) | (behind_b < tokens_after), "segment_b_start is not in the row"))
    if labels.max() > largest_label:
        faults.append(_named(labels > largest_label, f"next_sentence_label is above {largest_label}"))
    if not np.array_equal(positions.offsets, rows.masked_lm_ids.offsets):
        is_wrong = per_row != rows.masked_lm_ids.lengths()
        faults.append(_named(is_wrong, "it does not have one masked_lm_id per masked position"))
    if per_row.min() < fewest:
        what = "no token is masked, although the examples were built with masks"
        faults.append(_named(per_row < fewest, what))
    if len(positions.values) and per_row.min() >= 0:
        faults.append(_position_fault(positions, lengths, per_row))
    return min((fault for fault in faults if fault is not None), key=lambda fault: fault[0], default=None)


def _id_fault(name: str, column: Ragged, rules: RowRules) -> tuple[int, str] | None:
    values = column.values
    if not len(values) or values.max() < rules.vocab_size:
        return None
    place = int(np.argmax(values >= rules.vocab_size))
    row = int(np.searchsorted(column.offsets, place, side="right")) - 1
    return row, f"{name} has the id {values[place]}, but the vocabulary ends at {rules.vocab_size - 1}"


def _position_fault(column: Ragged, lengths: npt.NDArray[Any], per_row: npt.NDArray[Any]) -> tuple[int, str] | None:
    """Positions ascend, so checking the first and last of a row covers all between."""
    positions, has_some = column.values, per_row > 0
    starts, ends = column.offsets[:-1], column.offsets[1:]
    if not has_some.all():
        starts, ends, lengths = starts[has_some], ends[has_some], lengths[has_some]
    firsts, lasts = positions[starts], positions[ends - 1]
    outside = (firsts < 1) | (lasts >= lengths - 1)
    falls = positions[1:] <= positions[:-1]
    # A descent is allowed between two rows only; so the two counts differ if there is one inside a row.
    allowed = firsts[1:] <= lasts[:-1]
    if np.count_nonzero(falls) == np.count_nonzero(allowed) and not outside.any():
        return None
    falls[starts[1:] - 1] = False
    rows = np.searchsorted(column.offsets, 1 + np.flatnonzero(falls)[:1], side="right") - 1
    faults = [*rows.tolist(), *np.flatnonzero(has_some)[np.flatnonzero(outside)[:1]].tolist()]
    return min(faults), "a masked position is outside the row's text, or not above the one before it"


def _named(is_wrong: npt.NDArray[np.bool_], what: str) -> tuple[int, str]:
    return int(np.argmax(is_wrong)), what
