"""What the manifest of the examples says about their rows; `pipelines.validate` computes the same from the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contract.manifest import FileRecord
from pipelines.contract.schemas import SPLITS, LengthBin, length_bins
from pipelines.contract.workspace import examples_prefix, length_directory, length_label
from pipelines.examples.losses import LOSSES
from pipelines.examples.masking import MaskedExamples
from pipelines.wordpiece.token_counts import ratio

_HISTOGRAM_BARS = 16

COUNTS = (
    "examples",
    "tokens",
    "random_next",
    "masked",
    "masked_as_mask",
    "masked_as_kept",
    "masked_as_random",
    "unk",
    "masked_unk",
)


def counts_of(examples: MaskedExamples, mask_id: int, unk_id: int) -> dict[str, int]:
    """Counts of some rows, which add up over batches and files: `COUNTS`.

    A random token that happens to equal the original counts as kept, and a random [MASK] as [MASK]. `unk` counts [UNK]
    as it stood before masking, `masked_unk` where it is to be predicted.
    """
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
) -> dict[str, Any]:
    """What the manifest states about one maximum length.

    Args:
        files: all files of the stage, with their `COUNTS`.
        rows_by_length: [max_seq_length + 1], summed over the files of this length.
        losses: `LOSSES` of this length, summed over the documents shards.
    """
    of_length = [file for file in files if file.name.startswith(f"{length_directory(max_seq_length)}/")]
    total = _sums(of_length)
    lengths = np.flatnonzero(rows_by_length)
    return total | {
        "random_next_share": ratio(total["random_next"], total["examples"]),
        "masked_share": ratio(total["masked"], total["tokens"]),
        "mask_token_share": ratio(total["masked_as_mask"], total["masked"]),
        "kept_token_share": ratio(total["masked_as_kept"], total["masked"]),
        "random_token_share": ratio(total["masked_as_random"], total["masked"]),
        "unk_share": ratio(total["unk"], total["tokens"]),
        "masked_unk_share": ratio(total["masked_unk"], total["masked"]),
        **{name: losses[name] for name in LOSSES},
        "tokens_cut_share": ratio(losses["tokens_cut"], losses["tokens_to_place"]),
        "long_sentences_share": ratio(losses["long_sentences"], losses["sentences"]),
        "same_document_random_next_share": ratio(losses["same_document_random_next"], total["random_next"]),
        "shortest_example": int(lengths[0]) if len(lengths) else 0,
        "longest_example": int(lengths[-1]) if len(lengths) else 0,
        "mean_length": ratio(total["tokens"], total["examples"]),
        "length_histogram": _histogram(rows_by_length),
        "splits": {split: _sums([file for file in of_length if f"/{split}-" in file.name], 3) for split in SPLITS},
        "bins": {
            length_label(one.up_to, max_seq_length): _balance(of_length, max_seq_length, one)
            for one in length_bins(max_seq_length, num_bins)
        },
    }


def _sums(files: Sequence[FileRecord], columns: int = len(COUNTS)) -> dict[str, int]:
    return {name: sum(file.statistics[name] for file in files) for name in COUNTS[:columns]}


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
            (ratio(abs(statistics[name] * len(training) - whole), whole) for statistics in training), default=0.0
        )
        for name, whole in sums.items()
    }
    return {**{f"train_{name}": whole for name, whole in sums.items()}, **spread}
