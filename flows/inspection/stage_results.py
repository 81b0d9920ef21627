"""The main result of a finished stage in one line, from the statistics of its manifest: one row per stage."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.workspace import DISTILLATION, DOCUMENTS, EXAMPLES, PRETRAINING, VOCABULARY
from pipelines.statistics.metrics import MINIMAL_PAIRS
from pipelines.statistics.preprocessing import DocumentsStatistics, ExamplesStatistics, VocabularyStatistics
from pipelines.statistics.training import (
    DistillationStatistics,
    PretrainingStatistics,
    TrainingStatistics,
    TrialStatistics,
)


def result_in_words(stage: str, manifest: Manifest) -> str:
    """The main result; if another version wrote the statistics, a note of that. Any other stage is a trial."""
    try:
        return ", ".join(_RESULTS.get(stage, _trial)(manifest))
    except InputError as error:
        return str(error)


def _documents(manifest: Manifest) -> list[str]:
    documents = manifest.statistics_as(DocumentsStatistics)
    return [f"{documents.documents_kept:,} documents", f"{documents.characters:,} characters"]


def _vocabulary(manifest: Manifest) -> list[str]:
    facts = manifest.statistics_as(VocabularyStatistics)
    parts = [f"{facts.size:,} entries"]
    if facts.origin is not None:
        parts.append(f"from {facts.origin}")
    if facts.extension is not None:
        parts.append(f"{facts.extension.words_added:,} words added")
    return parts


def _examples(manifest: Manifest) -> list[str]:
    lengths = manifest.statistics_as(ExamplesStatistics).all_lengths()
    return [f"{values.examples:,} of length {length}" for length, values in lengths.items()]


def _trained(statistics: TrainingStatistics) -> list[str]:
    counts = {"steps": statistics.steps, "tokens": statistics.tokens}
    parts = [f"{count:,} {name}" for name, count in counts.items() if count is not None]
    shown = (metric for metric in (statistics.judged_by, MINIMAL_PAIRS) if metric.name in statistics.heldout)
    parts += [f"held-out {metric.label} {statistics.heldout[metric.name]:.3f}" for metric in shown]
    return parts + [f"from {record.in_words()}" for record in statistics.lineage]


def _trial(manifest: Manifest) -> list[str]:
    trial = manifest.statistics_as(TrialStatistics)
    return [f"{trial.metric} {trial.score:.3f}"]


_RESULTS: dict[str, Callable[[Manifest], list[str]]] = {
    DOCUMENTS: _documents,
    VOCABULARY: _vocabulary,
    EXAMPLES: _examples,
    PRETRAINING: lambda manifest: _trained(manifest.statistics_as(PretrainingStatistics)),
    DISTILLATION: lambda manifest: _trained(manifest.statistics_as(DistillationStatistics)),
}
