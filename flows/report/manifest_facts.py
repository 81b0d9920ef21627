"""Facts about the corpus and the tasks from the manifests: gathered for report.json, and read from it by the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.statistics import StatisticsT
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FINETUNING,
    MANIFEST_NAME,
    PRETRAINED,
    RANDOM,
    VOCABULARY,
)
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    SourceStatistics,
    TextFit,
    VocabularyStatistics,
)
from pipelines.statistics.training import TrialStatistics


class _Facts(BaseModel):
    """Values of report.json; those that no manifest has are None or empty."""

    model_config = ConfigDict(frozen=True)


class TextFigure(_Facts):
    """One measure of how well a stage fits the text."""

    stage: str
    figure: str
    value: int | float


class CorpusFacts(_Facts):
    """Documents read and kept, vocabulary and examples."""

    sources: list[dict[str, Any]] = []
    documents_read: int | None = None
    documents_kept: int | None = None
    documents_rejected: int | None = None
    rejected_by_reason: dict[str, int] = {}
    heldout_documents: int | None = None
    sentences: int | None = None
    characters: int | None = None
    cleaning: dict[str, int] = {}
    vocabulary_size: int | None = None
    vocabulary_origin: str | None = None
    words_added: int | None = None
    distinct_words: int | None = None
    examples: int | None = None
    example_tokens: int | None = None
    lengths: dict[str, LengthStatistics] = {}
    mixtures: dict[str, dict[str, SourceStatistics]] = {}
    text_figures: list[TextFigure] = []


def _figures(stage: str, fit: TextFit | None) -> list[TextFigure]:
    names = ("unk_share", "unk_characters_share", "pieces_per_word") if fit else ()
    return [TextFigure(stage=stage, figure=name, value=getattr(fit, name)) for name in names]


class TaskFacts(_Facts):
    """Scores of a fine-tuning task by initial weights. problem: why one of its manifests cannot be read."""

    task: str
    metric: str | None = None
    pretrained: float | None = None
    random: float | None = None
    majority_baseline: float | None = None
    train_rows: int | None = None
    dev_rows: int | None = None
    in_recipe: bool = True
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in report.json: with the problem only if there is one."""
        return self.model_dump(exclude=None if self.problem else {"problem"})


def corpus_facts(manifests: Mapping[str, Manifest]) -> tuple[CorpusFacts, dict[str, str]]:
    """Facts of documents, vocabulary and examples; and, by stage, why its statistics are omitted.

    Statistics that another release wrote may lack fields, and the report must not fail a finished run.
    """
    problems: dict[str, str] = {}

    def stated(stage: str, model: type[StatisticsT]) -> StatisticsT | None:
        try:
            return manifests[stage].statistics_as(model) if stage in manifests else None
        except InputError as error:
            problems[stage] = str(error)
            return None

    documents = stated(DOCUMENTS, DocumentsStatistics)
    vocabulary = stated(VOCABULARY, VocabularyStatistics)
    examples = stated(EXAMPLES, ExamplesStatistics)
    config = manifests[DOCUMENTS].config if DOCUMENTS in manifests else {}
    found: dict[str, Any] = {
        "sources": [
            {"format": source.get("format"), "inputs": source.get("inputs", [])} for source in config.get("sources", [])
        ]
    }
    if documents:
        found |= documents.to_json()
    if vocabulary:
        found |= {
            "vocabulary_size": vocabulary.size,
            "vocabulary_origin": vocabulary.origin,
            "words_added": vocabulary.extension.words_added if vocabulary.extension else None,
            "distinct_words": vocabulary.distinct_words,
            "text_figures": [
                *_figures(VOCABULARY, vocabulary),
                *_figures(EXAMPLES, examples.text if examples else None),
            ],
        }
    if examples and examples.lengths:
        lengths = examples.all_lengths().values()
        found |= {
            "examples": sum(length.examples for length in lengths),
            "example_tokens": sum(length.tokens for length in lengths),
            "lengths": examples.all_lengths(),
            "mixtures": {name or "": sources for name, sources in examples.all_sources().items()},
        }
    return CorpusFacts.model_validate(found), problems


def length_order(label: str) -> tuple[str, int]:
    """Sort key of the labels of `ExamplesStatistics.all_lengths`: `128`, `NAME/128`."""
    name, _, max_seq_length = label.rpartition("/")
    return name, int(max_seq_length)


def task_facts(whole: WholeRecipe, manifests: Mapping[str, Manifest]) -> list[TaskFacts]:
    """The recipe's tasks in its order, then other tasks in the workspace."""
    trials: dict[str, TrialStatistics | str | None] = {f"{task}/{PRETRAINED}": None for task in whole.finetuning.tasks}
    trials |= _trials_in_workspace(whole)
    trials |= {name: trial_of(manifest) for name, manifest in manifests.items() if _start_of(name) is not None}
    tasks: dict[str, TaskFacts] = {}
    for name, trial in trials.items():
        task, _, start = name.rpartition("/")
        known = tasks.setdefault(task, TaskFacts(task=task, in_recipe=task in whole.finetuning.tasks))
        if isinstance(trial, str):
            tasks[task] = known.model_copy(update={"problem": trial})
        elif trial is not None:
            update = {
                "metric": trial.metric,
                "majority_baseline": trial.majority_baseline,
                "train_rows": trial.train_rows,
                "dev_rows": trial.dev_rows,
            }
            kept = {key: value for key, value in update.items() if getattr(known, key) is None}
            tasks[task] = known.model_copy(update={**kept, start: trial.score})
    return list(tasks.values())


def _start_of(name: str) -> str | None:
    """The initial weights of a trial, from its output name; None for another stage."""
    start = name.rpartition("/")[2]
    return start if start in (PRETRAINED, RANDOM) else None


def trial_of(manifest: Manifest) -> TrialStatistics | str:
    """The statistics of a trial, or why they cannot be read."""
    try:
        return manifest.statistics_as(TrialStatistics)
    except InputError as error:
        return str(error)


def _trials_in_workspace(whole: WholeRecipe) -> dict[str, TrialStatistics | str | None]:
    """Every complete fine-tuning trial, by `task/start`, without other manifests."""
    root = storage.join(whole.run.workspace, FINETUNING)
    found: dict[str, TrialStatistics | str | None] = {}
    for name in storage.list_files(root):
        trial, _, file = name.rpartition("/")
        if file != MANIFEST_NAME or _start_of(trial) is None:
            continue
        try:
            manifest = read_manifest(storage.join(root, trial))
        except InputError as error:
            found[trial] = str(error)
            continue
        assert manifest is not None, trial
        if manifest.stage == FINETUNING:
            found[trial] = trial_of(manifest)
    return found
