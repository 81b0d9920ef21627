"""What the manifest of the examples says about their rows; `pipelines.validate` computes the same from the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import (
    SPLITS,
    FileRecord,
    LengthBin,
    examples_prefix,
    length_bins,
    length_directory,
    length_label,
)
from pipelines.masking import MaskedExamples

_HISTOGRAM_BARS = 16

COUNTS = ("examples", "tokens", "random_next", "masked", "masked_as_mask", "masked_as_kept", "masked_as_random")


def counts_of(examples: MaskedExamples, mask_id: int) -> dict[str, int]:
    """Counts of some rows, which add up over batches and files: `COUNTS`.

    A random token that happens to equal the original counts as kept, and a random [MASK] as [MASK].
    """
    replaced = examples.input_ids[flat_positions(examples)]
    is_mask = replaced == mask_id
    is_kept = (replaced == examples.masked_lm_ids) & ~is_mask
    counts = (
        len(examples.next_sentence_label),
        len(examples.input_ids),
        int(examples.next_sentence_label.sum()),
        len(replaced),
        int(is_mask.sum()),
        int(is_kept.sum()),
        int((~is_mask & ~is_kept).sum()),
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
    files: Sequence[FileRecord], rows_by_length: NDArray[np.int64], max_seq_length: int, num_bins: int
) -> dict[str, Any]:
    """What the manifest states about one maximum length.

    Args:
        files: all files of the stage, with their `COUNTS`.
        rows_by_length: [max_seq_length + 1], summed over the files of this length.
    """
    of_length = [file for file in files if file.name.startswith(f"{length_directory(max_seq_length)}/")]
    total = _sums(of_length)
    lengths = np.flatnonzero(rows_by_length)
    return total | {
        "random_next_share": _ratio(total["random_next"], total["examples"]),
        "masked_share": _ratio(total["masked"], total["tokens"]),
        "mask_token_share": _ratio(total["masked_as_mask"], total["masked"]),
        "kept_token_share": _ratio(total["masked_as_kept"], total["masked"]),
        "random_token_share": _ratio(total["masked_as_random"], total["masked"]),
        "shortest_example": int(lengths[0]) if len(lengths) else 0,
        "longest_example": int(lengths[-1]) if len(lengths) else 0,
        "mean_length": _ratio(total["tokens"], total["examples"]),
        "length_histogram": _histogram(rows_by_length),
        "splits": {split: _sums([file for file in of_length if f"/{split}-" in file.name], 2) for split in SPLITS},
        "bins": {
            length_label(one.up_to, max_seq_length): _balance(of_length, max_seq_length, one)
            for one in length_bins(max_seq_length, num_bins)
        },
    }


def _sums(files: Sequence[FileRecord], columns: int = len(COUNTS)) -> dict[str, int]:
    return {name: sum(file.statistics[name] for file in files) for name in COUNTS[:columns]}


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _histogram(rows_by_length: NDArray[np.int64]) -> dict[str, int]:
    """Rows by length in up to sixteen equal steps, each named by its greatest length."""
    longest = len(rows_by_length) - 1
    bars = length_bins(longest, min(_HISTOGRAM_BARS, longest))
    return {length_label(bar.up_to, longest): int(rows_by_length[bar.above + 1 : bar.up_to + 1].sum()) for bar in bars}


def _balance(files: Sequence[FileRecord], max_seq_length: int, length_bin: LengthBin) -> dict[str, Any]:
    """Sums of a bin, and by which share the training file that differs most differs from their mean."""
    prefix = examples_prefix(max_seq_length, length_bin, "train")
    training = [file.statistics for file in files if file.name.startswith(prefix)]
    sums = {name: sum(statistics[name] for statistics in training) for name in ("examples", "tokens")}
    spread = {
        f"most_off_mean_{name}": max(
            (_ratio(abs(statistics[name] * len(training) - whole), whole) for statistics in training), default=0.0
        )
        for name, whole in sums.items()
    }
    return {**{f"train_{name}": whole for name, whole in sums.items()}, **spread}
