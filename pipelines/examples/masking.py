"""Masked-LM positions and replacements, as `create_masked_lm_predictions` (create_pretraining_data.py) draws them.

`min(max_predictions_per_seq, max(1, round(length * masked_lm_prob)))` tokens are predicted, the length counting [CLS]
and [SEP], which themselves are never masked. 80 % become [MASK], 10 % stay, 10 % become a token drawn from the complete
vocabulary. Whole-word masking takes a word's `##` pieces together and never joins words across [SEP]. Dynamic masking
(Liu et al., 2019, section 4.1) leaves all this to training: rows are written unmasked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.examples.planned_rows import PlannedRows
from pipelines.seeding import next_below, next_uniform


@dataclass(frozen=True)
class MaskingRules:
    """What is masked and how. `is_continuation`: bool [vocabulary], true where a token starts with `##`."""

    masked_lm_prob: float
    max_predictions_per_seq: int
    whole_word: bool
    cls_id: int
    sep_id: int
    mask_id: int
    is_continuation: NDArray[np.bool_]
    is_dynamic: bool = False


@dataclass(frozen=True)
class MaskedExamples:
    """Rows of the examples schema as flat arrays, with int64 offsets [rows + 1] into ids and into predictions."""

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    segment_b_start: NDArray[np.uint16]
    masked_lm_positions: NDArray[np.uint16]
    masked_lm_ids: NDArray[np.int32]
    masked_lm_offsets: NDArray[np.int64]
    next_sentence_label: NDArray[np.uint8]


def build_examples(input_ids: NDArray[np.int32], rows: PlannedRows, rules: MaskingRules) -> MaskedExamples:
    """Write out planned rows as `[CLS] piece [SEP] piece [SEP] ...` and mask them.

    Args:
        input_ids: int32 [tokens] of the documents that the rows were planned from.
    """
    return MaskedExamples(
        *_build_examples(
            input_ids,
            rows.pieces,
            rows.offsets,
            rows.lengths,
            rows.keys,
            rows.has_segment_b,
            rules.masked_lm_prob,
            rules.max_predictions_per_seq,
            rules.whole_word,
            rules.is_dynamic,
            rules.cls_id,
            rules.sep_id,
            rules.mask_id,
            rules.is_continuation,
        ),
        next_sentence_label=rows.next_sentence_label,
    )


@numba.njit(cache=True, nogil=True)
def num_predictions(length: int, masked_lm_prob: float, max_predictions_per_seq: int) -> int:
    """How many tokens of a sequence of `length` (special tokens counted) are predicted; halves round to even."""
    return min(max_predictions_per_seq, max(1, int(np.rint(length * masked_lm_prob))))


@numba.njit(cache=True, nogil=True)
def _build_examples(
    token_ids: NDArray[np.int32],
    pieces: NDArray[np.int64],
    piece_offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    keys: NDArray[np.uint64],
    has_segment_b: bool,
    masked_lm_prob: float,
    max_predictions_per_seq: int,
    whole_word: bool,
    is_dynamic: bool,
    cls_id: int,
    sep_id: int,
    mask_id: int,
    is_continuation: NDArray[np.bool_],
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.uint16],
    NDArray[np.uint16],
    NDArray[np.int32],
    NDArray[np.int64],
]:
    # Size the output: ids exactly, predictions by their maximum.
    num_rows = len(lengths)
    offsets = np.zeros(num_rows + 1, np.int64)
    masked_lm_offsets = np.zeros(num_rows + 1, np.int64)
    longest = 0
    for row in range(num_rows):
        longest = max(longest, lengths[row])
        offsets[row + 1] = offsets[row] + lengths[row]
    input_ids = np.empty(offsets[num_rows], np.int32)
    segment_b_start = np.empty(num_rows, np.uint16)
    most = 0 if is_dynamic else num_rows * num_predictions(longest, masked_lm_prob, max_predictions_per_seq)
    masked_lm_positions = np.empty(most, np.uint16)
    masked_lm_ids = np.empty(most, np.int32)
    stream = np.zeros(2, np.uint64)
    starts, ends, order = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    is_masked = np.zeros(longest, np.bool_)
    written = 0
    for row in range(num_rows):
        # Write [CLS], then each piece with its [SEP], and collect the maskable units.
        ids = input_ids[offsets[row] : offsets[row + 1]]
        ids[0] = cls_id
        length, num_words = 1, 0
        first, last = piece_offsets[row], piece_offsets[row + 1]
        segment_b_start[row] = lengths[row]
        for piece in range(first, last):
            if has_segment_b and piece == first + 1:
                segment_b_start[row] = length
            start, size = pieces[piece, 0], pieces[piece, 1] - pieces[piece, 0]
            ids[length : length + size] = token_ids[start : start + size]
            ids[length + size] = sep_id
            if not is_dynamic:
                num_words = _find_words(
                    ids, length, length + size, whole_word, is_continuation, starts, ends, num_words
                )
            length += size + 1
        if is_dynamic:
            continue
        # Choose units, then replace their tokens from left to right.
        stream[0], stream[1] = keys[row], np.uint64(0)
        wanted = num_predictions(length, masked_lm_prob, max_predictions_per_seq)
        _choose(starts, ends, order, num_words, wanted, stream, is_masked)
        for position in range(length):
            if not is_masked[position]:
                continue
            is_masked[position] = False
            masked_lm_positions[written] = position
            masked_lm_ids[written] = ids[position]
            written += 1
            if next_uniform(stream) < 0.8:
                ids[position] = mask_id
            elif next_uniform(stream) >= 0.5:
                ids[position] = next_below(stream, len(is_continuation))
        masked_lm_offsets[row + 1] = written
    return (
        input_ids,
        offsets,
        segment_b_start,
        masked_lm_positions[:written].copy(),
        masked_lm_ids[:written].copy(),
        masked_lm_offsets,
    )


@numba.njit(cache=True, nogil=True)
def _find_words(
    ids: NDArray[np.int32],
    first: int,
    last: int,
    whole_word: bool,
    is_continuation: NDArray[np.bool_],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    num_words: int,
) -> int:
    """Add the maskable units (a token, or a whole word) of the piece at [first, last); return the number so far."""
    for position in range(first, last):
        if whole_word and position > first and is_continuation[ids[position]]:
            ends[num_words - 1] = position + 1
        else:
            starts[num_words], ends[num_words] = position, position + 1
            num_words += 1
    return num_words


@numba.njit(cache=True, nogil=True)
def _choose(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    order: NDArray[np.int64],
    num_words: int,
    wanted: int,
    stream: NDArray[np.uint64],
    is_masked: NDArray[np.bool_],
) -> None:
    """Mark units in random order (Fisher-Yates, as far as needed); a unit that would exceed `wanted` is skipped."""
    for word in range(num_words):
        order[word] = word
    chosen = 0
    for index in range(num_words):
        if chosen >= wanted:
            return
        other = index + next_below(stream, num_words - index)
        word = order[other]
        order[other] = order[index]
        start, end = starts[word], ends[word]
        if chosen + end - start <= wanted:
            is_masked[start:end] = True
            chosen += end - start
