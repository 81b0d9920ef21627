"""The closing lines of a job: one line of figures, and one for each warning, from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.contract.manifest import Manifest
from pipelines.results.coverage import fit_in_words
from pipelines.statistics.preprocessing import (
    ExamplesStatistics,
    LengthStatistics,
    SourceStatistics,
    VocabularyStatistics,
)


def vocabulary_summary(manifest: Manifest) -> list[str]:
    """Lines about a vocabulary: entries, words, pieces a word, [UNK]; then its warnings."""
    facts = manifest.statistics_as(VocabularyStatistics)
    source = "from" if facts.origin is None else f"of {facts.origin}, on"
    lines = [
        f"vocabulary: {facts.size:,} entries {source} {facts.words:,} words ({facts.distinct_words:,} different); "
        f"{fit_in_words(facts)}"
    ]
    if added := facts.extension:
        lines.append(
            f"vocabulary: {added.words_added:,} words added, {added.into_unused:,} into [unused] entries and "
            f"{added.appended:,} at the end ({', '.join(added.examples[:5])}, ...): {added.pieces_per_word_before:.2f} "
            f"pieces a word and [UNK] {added.unk_share_before:.2%} before"
        )
    return [*lines, *_warnings(manifest, facts.warnings)]


def examples_summary(manifest: Manifest) -> list[str]:
    """Lines about examples: rows and what was cut of each length, pieces a word, [UNK]; then their warnings."""
    statistics = manifest.statistics_as(ExamplesStatistics)
    parts = [_length_in_words(length, facts, manifest.config) for length, facts in statistics.all_lengths().items()]
    for name, sources in statistics.all_sources().items():
        shares = ", ".join(_share_in_words(*each) for each in sources.items())
        parts.append(f"sources{'' if name is None else f' of {name}'}: {shares}")
    return [
        f"examples: {'; '.join([*parts, fit_in_words(statistics.text)])}",
        *_warnings(manifest, statistics.warnings),
    ]


def _share_in_words(name: str, facts: SourceStatistics) -> str:
    return f"{name} {facts.share:.1%} of the tokens read ({facts.reads_per_pass:.2f} times a pass)"


def _length_in_words(length: str, facts: LengthStatistics, config: Mapping[str, Any]) -> str:
    splits = facts.splits
    line = f"length {length}: {splits['train'].examples:,} rows, {splits['heldout'].examples:,} held out"
    if config["next_sentence"]:
        line += f", {facts.random_next_share:.1%} random next"
    if facts.masked:
        line += f", [UNK] {facts.masked_unk_share:.2%} of what is predicted"
    return line + f", {facts.tokens_cut_share:.1%} of the tokens cut off"


def _warnings(manifest: Manifest, warnings: list[str]) -> list[str]:
    return [f"{manifest.stage}: WARNING: {line}" for line in warnings]
