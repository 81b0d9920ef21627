"""What the manifest of the examples says about their rows; `pipelines.validate` computes the same from the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.contract.manifest import FileRecord
from pipelines.contract.schemas import SPLITS, LengthBin, length_bins
from pipelines.contract.statistics import (
    BinBalance,
    LengthStatistics,
    RowCounts,
    SplitRows,
    StatisticsT,
    TokenLosses,
)
from pipelines.contract.workspace import examples_prefix, length_directory, length_label
from pipelines.examples.masking import MaskedExamples
from pipelines.wordpiece.token_counts import ratio

_HISTOGRAM_BARS = 16

COUNTS = tuple(RowCounts.model_fields)


def counts_of(examples: MaskedExamples, mask_id: int, unk_id: int) -> dict[str, int]:
    """Counts of some rows, which add up over batches and files: the fields of `RowCounts`."""
    replaced = examples.input_ids[flat_positions(examples)]
    is_mask = replaced == mask_id
    is_kept = (replaced == examples.masked_lm_ids) & ~is_mask
    masked_unk = int((examples.masked_lm_ids == unk_id).sum())
    unk = int(np.count_nonzero(examples.input_ids == unk_id)) - int((replaced == unk_id).sum()) + masked_unk
    counts = (
        len(examples.next_sentence_label),
        len(examples.input_ids),
        int(examples.next_sentence_label.sum()),
        len(replaced),
        int(is_mask.sum()),
        int(is_kept.sum()),
        int((~is_mask & ~is_kept).sum()),
        unk,
        masked_unk,
    )
    return dict(zip(COUNTS, counts, strict=True))


def flat_positions(examples: MaskedExamples) -> NDArray[np.int64]:
    """Where the predicted tokens of all rows lie in `input_ids`."""
    per_row = np.diff(examples.masked_lm_offsets)
    return np.repeat(examples.offsets[:-1], per_row) + examples.masked_lm_positions


def rows_per_length(examples: MaskedExamples, max_seq_length: int) -> NDArray[np.int64]:
    """How many rows have 0, 1, ... `max_seq_length` tokens: int64 [max_seq_length + 1]."""
    return np.bincount(np.diff(examples.offsets), minlength=max_seq_length + 1)


def summary_of(
    files: Sequence[FileRecord],
    rows_by_length: NDArray[np.int64],
    max_seq_length: int,
    num_bins: int,
    losses: Mapping[str, int],
) -> LengthStatistics:
    """What the manifest states about one maximum length.

    Args:
        files: all files of the stage, with their `COUNTS`.
        rows_by_length: [max_seq_length + 1], summed over the files of this length.
        losses: `LOSSES` of this length, summed over the documents shards.
    """
    of_length = [file for file in files if file.name.startswith(f"{length_directory(max_seq_length)}/")]
    total, lost = _sums(RowCounts, of_length), TokenLosses.model_validate(losses)
    lengths = np.flatnonzero(rows_by_length)
    return LengthStatistics(
        **total.to_json(),
        random_next_share=ratio(total.random_next, total.examples),
        masked_share=ratio(total.masked, total.tokens),
        mask_token_share=ratio(total.masked_as_mask, total.masked),
        kept_token_share=ratio(total.masked_as_kept, total.masked),
        random_token_share=ratio(total.masked_as_random, total.masked),
        unk_share=ratio(total.unk, total.tokens),
        masked_unk_share=ratio(total.masked_unk, total.masked),
        **lost.to_json(),
        tokens_cut_share=ratio(lost.tokens_cut, lost.tokens_to_place),
        long_sentences_share=ratio(lost.long_sentences, lost.sentences),
        same_document_random_next_share=ratio(lost.same_document_random_next, total.random_next),
        shortest_example=int(lengths[0]) if len(lengths) else 0,
        longest_example=int(lengths[-1]) if len(lengths) else 0,
        mean_length=ratio(total.tokens, total.examples),
        length_histogram=_histogram(rows_by_length),
        splits={split: _sums(SplitRows, [file for file in of_length if f"/{split}-" in file.name]) for split in SPLITS},
        bins={
            length_label(one.up_to, max_seq_length): _balance(of_length, max_seq_length, one)
            for one in length_bins(max_seq_length, num_bins)
        },
    )


def _sums(model: type[StatisticsT], files: Sequence[FileRecord]) -> StatisticsT:
    return model.model_validate({name: sum(file.statistics[name] for file in files) for name in model.model_fields})


def _histogram(rows_by_length: NDArray[np.int64]) -> dict[str, int]:
    """Rows by length in up to sixteen equal steps, each named by its greatest length."""
    longest = len(rows_by_length) - 1
    bars = length_bins(longest, min(_HISTOGRAM_BARS, longest))
    return {length_label(bar.up_to, longest): int(rows_by_length[bar.above + 1 : bar.up_to + 1].sum()) for bar in bars}


def _balance(files: Sequence[FileRecord], max_seq_length: int, length_bin: LengthBin) -> BinBalance:
    """Sums of a bin, and by which share the training file that differs most differs from their mean."""
    prefix = examples_prefix(max_seq_length, length_bin, "train")
    training = [file.statistics for file in files if file.name.startswith(prefix)]
    (examples, off_examples), (tokens, off_tokens) = (
        _sum_and_spread([statistics[name] for statistics in training]) for name in ("examples", "tokens")
    )
    return BinBalance(
        train_examples=examples,
        train_tokens=tokens,
        most_off_mean_examples=off_examples,
        most_off_mean_tokens=off_tokens,
    )


def _sum_and_spread(counts: Sequence[int]) -> tuple[int, float]:
    whole = sum(counts)
    return whole, max((ratio(abs(count * len(counts) - whole), whole) for count in counts), default=0.0)
