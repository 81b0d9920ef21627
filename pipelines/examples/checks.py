"""What must hold for every row of examples, checked for all rows of a file at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contract.schemas import CLS, CONTINUATION, MASK, PAD, SEP, UNMASKED
from pipelines.examples.masking import MaskedExamples, num_predictions
from pipelines.examples.statistics import flat_positions


def first_fault(examples: MaskedExamples, metadata: Mapping[str, str], tokens: Sequence[str]) -> tuple[int, str] | None:
    """The first row that breaks the contract, and how; None if all rows satisfy it.

    Args:
        metadata: of the file's schema, without the prefix.
        tokens: the vocabulary in id order.
    """
    faults: list[tuple[int, str]] = []

    def require(what: str, right: NDArray[np.bool_], rows: NDArray[np.int64] | None = None) -> None:
        wrong = np.flatnonzero(~right)
        if len(wrong):
            faults.append((int(wrong[0] if rows is None else rows[wrong[0]]), what))

    lengths, per_row = np.diff(examples.offsets), np.diff(examples.masked_lm_offsets)
    is_pair = metadata["next_sentence"] == "true"
    require("longer than max_seq_length", lengths <= int(metadata["max_seq_length"]))
    require(
        "shorter than the five tokens of the smallest pair" if is_pair else "without a token of text",
        lengths >= (5 if is_pair else 3),
    )
    in_bin = (lengths > int(metadata["bin_above"])) & (lengths <= int(metadata["bin_up_to"]))
    require(f"its length is not in the bin of {metadata['bin_above']} < length <= {metadata['bin_up_to']}", in_bin)
    rows_of_tokens = np.repeat(np.arange(len(lengths)), lengths)
    rows_of_masks = np.repeat(np.arange(len(lengths)), per_row)
    positions = examples.masked_lm_positions.astype(np.int64)
    require("an id is not in the vocabulary", examples.input_ids < len(tokens), rows_of_tokens)
    require("a masked_lm_id is not in the vocabulary", examples.masked_lm_ids < len(tokens), rows_of_masks)
    outside = (positions < 1) | (positions >= lengths[rows_of_masks] - 1)
    require("a masked position is outside the text", ~outside, rows_of_masks)
    if is_pair:
        require("next_sentence_label is neither 0 nor 1", examples.next_sentence_label <= 1)
        inside = (examples.segment_b_start >= 3) & (examples.segment_b_start < lengths - 1)
        require("segment_b_start leaves a segment without a token", inside)
    else:
        require("next_sentence_label is not 0", examples.next_sentence_label == 0)
        require("segment_b_start is not the row's length", examples.segment_b_start == lengths)
    if not faults:
        # From here on offsets and positions can be trusted.
        _check_special_tokens(examples, is_pair, tokens, require)
        _check_masks(examples, metadata, tokens, require)
    return min(faults, key=lambda fault: fault[0], default=None)


def _restored(examples: MaskedExamples) -> NDArray[np.int32]:
    """`input_ids` before they were masked."""
    ids = examples.input_ids.copy()
    ids[flat_positions(examples)] = examples.masked_lm_ids
    return ids


def _check_special_tokens(examples: MaskedExamples, is_pair: bool, tokens: Sequence[str], require: Any) -> None:
    ids, starts, lengths = _restored(examples), examples.offsets[:-1], np.diff(examples.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(ids)) - starts[rows]
    is_sep, is_first, is_last = ids == tokens.index(SEP), places == 0, places == lengths[rows] - 1
    require("does not begin with [CLS]", examples.input_ids[starts] == tokens.index(CLS))
    require("does not end with [SEP]", examples.input_ids[examples.offsets[1:] - 1] == tokens.index(SEP))
    require("[CLS] within the text", is_first | (ids != tokens.index(CLS)), rows)
    require("a [PAD] in the text", ids != tokens.index(PAD), rows)
    require("a [MASK] where no token is predicted", ids != tokens.index(MASK), rows)
    if is_pair:
        separators = examples.segment_b_start[rows].astype(np.int64) - 1
        require("segment A does not end with [SEP]", is_sep | (places != separators), rows)
        require("a [SEP] within a segment", ~is_sep | is_last | (places == separators), rows)
    else:
        after_separator = np.concatenate(([False], is_sep[:-1])) | (places == 1)
        require("a [SEP] that closes no text", ~(is_sep & after_separator), rows)
    masked = flat_positions(examples)
    require("a [SEP] is masked", ~is_sep[masked], rows[masked])


def _check_masks(examples: MaskedExamples, metadata: Mapping[str, str], tokens: Sequence[str], require: Any) -> None:
    lengths, per_row = np.diff(examples.offsets), np.diff(examples.masked_lm_offsets)
    if metadata["masking"] in UNMASKED:
        require("masked, where masking is dynamic", per_row == 0)
        return
    ids = _restored(examples)
    rows = np.repeat(np.arange(len(lengths)), per_row)
    ascending = np.diff(examples.masked_lm_positions.astype(np.int64), prepend=-1) > 0
    ascending[examples.masked_lm_offsets[:-1][per_row > 0]] = True
    require("masked_lm_positions are not ascending", ascending, rows)
    prob, most = float(metadata["masked_lm_prob"]), int(metadata["max_predictions_per_seq"])
    by_length = np.array([num_predictions(length, prob, most) for length in range(int(metadata["max_seq_length"]) + 1)])
    is_special = np.isin(ids, [tokens.index(CLS), tokens.index(SEP)])
    candidates = lengths - np.add.reduceat(is_special, examples.offsets[:-1]) if len(lengths) else lengths
    expected = np.minimum(by_length[lengths], candidates)
    if metadata["masking"] == "static":
        require("the number of masked_lm_positions is not what masked_lm_prob asks for", per_row == expected)
        return
    require("more masked_lm_positions than masked_lm_prob asks for", per_row <= expected)
    is_masked = np.zeros(len(ids), np.bool_)
    is_masked[flat_positions(examples)] = True
    is_continuation = np.array([token.startswith(CONTINUATION) for token in tokens])[ids]
    joins = is_continuation[1:] & ~is_special[:-1]
    rows_of_tokens = np.repeat(np.arange(len(lengths)), lengths)
    require("a word is masked in part", ~joins | (is_masked[1:] == is_masked[:-1]), rows_of_tokens[1:])
