"""What the manifest of the examples states about their rows; `pipelines.validate` recomputes it from the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.contract.manifest import FileRecord
from pipelines.contract.schemas import SPLITS, LengthBin, length_bins
from pipelines.contract.statistics import StatisticsT
from pipelines.contract.workspace import examples_prefix, length_label
from pipelines.examples.losses import LOSSES
from pipelines.examples.masking import MaskedExamples
from pipelines.examples.planning import ShardNumber
from pipelines.examples.warnings import mixture_warnings, warnings_of
from pipelines.results.coverage import ratio
from pipelines.settings.examples import ExamplesConfig
from pipelines.statistics.preprocessing import (
    BinBalance,
    ExamplesStatistics,
    ExamplesText,
    LengthStatistics,
    RowCounts,
    SetStatistics,
    SourceStatistics,
    SplitRows,
    TokenLosses,
)
from pipelines.wordpiece.token_counts import TokenCounts, added, shares_of

_HISTOGRAM_BARS = 16

COUNTS = tuple(RowCounts.model_fields)


class ShardRows(NamedTuple):
    """What `BuildShard` made of a shard: rows of each bin and `LOSSES`, by directory, and what tokenising lost."""

    shard: ShardNumber
    rows: dict[str, list[int]]
    losses: dict[str, dict[str, int]]
    documents: int
    counts: TokenCounts


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
    """Positions of the predicted tokens of all rows in `input_ids`: int64 [predictions]."""
    per_row = np.diff(examples.masked_lm_offsets)
    return np.repeat(examples.offsets[:-1], per_row) + examples.masked_lm_positions


def rows_per_length(examples: MaskedExamples, max_seq_length: int) -> NDArray[np.int64]:
    """How many rows have 0, 1, ... `max_seq_length` tokens: int64 [max_seq_length + 1]."""
    return np.bincount(np.diff(examples.offsets), minlength=max_seq_length + 1)


def summary_of(
    files: Sequence[FileRecord],
    rows_by_length: NDArray[np.int64],
    directory: str,
    num_bins: int,
    losses: Mapping[str, int],
) -> LengthStatistics:
    """What the manifest states about one maximum length of a set.

    Args:
        files: all files of the stage, with their `COUNTS`.
        directory: of this length's files.
        rows_by_length: [max_seq_length + 1], summed over the files of this length.
        losses: `LOSSES` of this length, summed over the documents shards.
    """
    max_seq_length = len(rows_by_length) - 1
    of_length = [file for file in files if file.name.startswith(f"{directory}/")]
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
            length_label(one.up_to, max_seq_length): _balance(of_length, directory, one)
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


def _balance(files: Sequence[FileRecord], directory: str, length_bin: LengthBin) -> BinBalance:
    """Sums of a bin, and by which share the training file that differs most differs from their mean."""
    prefix = examples_prefix(directory, length_bin, "train")
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


def stage_statistics(
    files: list[FileRecord],
    rows_by_length: Mapping[str, NDArray[np.int64]],
    shards: Sequence[ShardRows],
    config: ExamplesConfig,
    sources: Mapping[str, Mapping[str, SourceStatistics]],
    remedy: str,
) -> ExamplesStatistics:
    """The statistics of the manifest.

    Args:
        files: all files of the stage.
        rows_by_length: by directory: how many rows have 0, 1, ... tokens.
        shards: what was made of each documents shard.
        sources: by the name of each set that has a mixture, "" for the section's own.
        remedy: `unk_remedy` of the vocabulary.
    """
    lengths: dict[str | None, dict[str, LengthStatistics]] = {}
    for part in config.parts():
        directory = part.directory
        losses = {loss: sum(shard.losses[directory][loss] for shard in shards) for loss in LOSSES}
        facts = summary_of(files, rows_by_length[directory], directory, config.num_length_bins, losses)
        lengths.setdefault(part.name, {})[str(part.length.max_seq_length)] = facts
    documents = {split: sum(one.documents for one in shards if one.shard.split == split) for split in SPLITS}
    text = ExamplesText(
        train_documents=documents["train"],
        heldout_documents=documents["heldout"],
        **shares_of(added([TokenCounts(), *(shard.counts for shard in shards)])),
    )
    warnings: list[str] = []
    sets: dict[str | None, dict[str, Any]] = {}
    for name, facts_of_set in lengths.items():
        of_set = sources.get(name or "", {})
        # A set repeats the warnings about the text.
        found = warnings_of(facts_of_set, text, config.of_set(name), remedy) + mixture_warnings(of_set)
        warnings += found if name is None else [f"set {name}: {line}" for line in found if line not in warnings]
        sets[name] = {"lengths": facts_of_set} | ({"sources": dict(of_set)} if of_set else {})
    own = sets.pop(None) | {"text": text, "warnings": warnings}
    if sets:
        own["sets"] = {name: SetStatistics(**facts) for name, facts in sets.items()}
    return ExamplesStatistics(**own)
