"""Masked-LM positions and replacements, as `create_masked_lm_predictions` (create_pretraining_data.py) draws them.

`min(max_predictions_per_seq, max(1, round(length * masked_lm_prob)))` tokens are predicted, the length counting [CLS]
and [SEP], which themselves are never masked. 80 % become [MASK], 10 % stay, 10 % become a token drawn from the whole
vocabulary. Whole-word masking takes a word's `##` pieces together and never joins words across [SEP].
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.seeding import derive_key, next_below, next_uniform
from pipelines.sentence_pairs import NUM_SPECIAL_TOKENS, TokenizedDocuments


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


def build_examples(
    documents: TokenizedDocuments, pairs: NDArray[np.int64], pass_keys: NDArray[np.uint64], rules: MaskingRules
) -> MaskedExamples:
    """Write out planned pairs as `[CLS] A [SEP] B [SEP]` and mask them.

    Args:
        pairs: int64 [rows, 7] of `plan_pairs`.
        pass_keys: uint64 [rows], the mask stream's key of the pass that each pair belongs to; a row draws from the
            sub-stream of its document and number, so its masks do not depend on the order of rows.
    """
    return MaskedExamples(
        *_build_examples(
            documents.input_ids,
            documents.document_keys,
            pairs,
            pass_keys,
            rules.masked_lm_prob,
            rules.max_predictions_per_seq,
            rules.whole_word,
            rules.cls_id,
            rules.sep_id,
            rules.mask_id,
            rules.is_continuation,
        )
    )


@numba.njit(cache=True, nogil=True)
def num_predictions(length: int, masked_lm_prob: float, max_predictions_per_seq: int) -> int:
    """How many tokens of a sequence of `length` (special tokens counted) are predicted; halves round to even."""
    return min(max_predictions_per_seq, max(1, int(np.rint(length * masked_lm_prob))))


@numba.njit(cache=True, nogil=True)
def _build_examples(
    token_ids: NDArray[np.int32],
    document_keys: NDArray[np.uint64],
    pairs: NDArray[np.int64],
    pass_keys: NDArray[np.uint64],
    masked_lm_prob: float,
    max_predictions_per_seq: int,
    whole_word: bool,
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
    NDArray[np.uint8],
]:
    num_rows = len(pairs)
    offsets = np.zeros(num_rows + 1, np.int64)
    masked_lm_offsets = np.zeros(num_rows + 1, np.int64)
    longest = 0
    for row in range(num_rows):
        pair = pairs[row]
        length = pair[1] - pair[0] + pair[3] - pair[2] + NUM_SPECIAL_TOKENS
        longest = max(longest, length)
        offsets[row + 1] = offsets[row] + length
    input_ids = np.empty(offsets[num_rows], np.int32)
    segment_b_start = np.empty(num_rows, np.uint16)
    next_sentence_label = np.empty(num_rows, np.uint8)
    most = num_rows * num_predictions(longest, masked_lm_prob, max_predictions_per_seq)
    masked_lm_positions = np.empty(most, np.uint16)
    masked_lm_ids = np.empty(most, np.int32)
    stream = np.zeros(2, np.uint64)
    starts, order = np.empty(longest + 1, np.int64), np.empty(longest + 1, np.int64)
    is_masked = np.zeros(longest, np.bool_)
    written = 0
    for row in range(num_rows):
        pair = pairs[row]
        ids = input_ids[offsets[row] : offsets[row + 1]]
        length = len(ids)
        a_length = pair[1] - pair[0]
        ids[0] = cls_id
        ids[1 : 1 + a_length] = token_ids[pair[0] : pair[1]]
        ids[1 + a_length] = sep_id
        ids[2 + a_length : length - 1] = token_ids[pair[2] : pair[3]]
        ids[length - 1] = sep_id
        segment_b_start[row] = 2 + a_length
        next_sentence_label[row] = pair[4]

        stream[0] = derive_key(derive_key(pass_keys[row], document_keys[pair[5]]), pair[6])
        stream[1] = np.uint64(0)
        num_words = _find_words(ids, 1 + a_length, whole_word, is_continuation, starts)
        wanted = num_predictions(length, masked_lm_prob, max_predictions_per_seq)
        _choose(starts, order, num_words, 1 + a_length, wanted, stream, is_masked)
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
        next_sentence_label,
    )


@numba.njit(cache=True, nogil=True)
def _find_words(
    ids: NDArray[np.int32],
    first_sep: int,
    whole_word: bool,
    is_continuation: NDArray[np.bool_],
    starts: NDArray[np.int64],
) -> int:
    """Write where each maskable unit (a token, or a whole word) starts, the row's last [SEP] after them; count them."""
    num_words = 0
    for position in range(1, len(ids) - 1):
        if position == first_sep:
            continue
        joins = whole_word and position > 1 and position != first_sep + 1 and is_continuation[ids[position]]
        if not joins:
            starts[num_words] = position
            num_words += 1
    starts[num_words] = len(ids) - 1
    return num_words


@numba.njit(cache=True, nogil=True)
def _choose(
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
    num_words: int,
    first_sep: int,
    wanted: int,
    stream: NDArray[np.uint64],
    is_masked: NDArray[np.bool_],
) -> None:
    """Mark units in random order (Fisher-Yates, as far as needed); a unit that would exceed `wanted` is passed over."""
    for word in range(num_words):
        order[word] = word
    chosen = 0
    for index in range(num_words):
        if chosen >= wanted:
            return
        other = index + next_below(stream, num_words - index)
        word = order[other]
        order[other] = order[index]
        start, end = starts[word], starts[word + 1]
        if start < first_sep < end:
            end = first_sep
        if chosen + end - start <= wanted:
            is_masked[start:end] = True
            chosen += end - start
