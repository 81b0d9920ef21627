"""Scores of models with digests of their data: the promotion gate compares only scores on the same data."""

from __future__ import annotations

import math
from typing import Any

from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, digest_of, read_manifest
from pipelines.contract.workspace import EXAMPLES, FINETUNING, VOCABULARY, length_directory
from pipelines.statistics.metrics import MINIMAL_PAIRS
from pipelines.statistics.training import (
    DistillationStatistics,
    PretrainingStatistics,
    TrainingStatistics,
    TrialStatistics,
)
from training.stages.finetuning import data_folder


def finetuned_evaluation(whole: WholeRecipe, task: str, manifest: Manifest) -> Evaluation | None:
    """The score of a trial on its task's development files; None if these are missing."""
    trial = manifest.statistics_as(TrialStatistics)
    paths = dev_files(whole, task)
    if not paths or any(storage.file_size_bytes(path) is None for path in paths):
        return None
    # Contents only: the same file in another folder is the same data.
    hashes = [storage.sha256_of(path) for path in paths]
    choice = whole.finetuning.family(task).dev_choice(whole.finetuning, task)
    data = digest_of([*hashes, choice] if choice else hashes)
    return Evaluation(trial.metric, trial.score, data, chance=trial.chance)


def dev_files(whole: WholeRecipe, task: str) -> list[str]:
    """The development files that a task is scored on; for MNLI the matched ones."""
    config = whole.finetuning
    return config.family(task).dev_files(config, task, data_folder(whole.run.workspace, config, task))


def encoder_evaluation(whole: WholeRecipe, manifest: Manifest) -> Evaluation | None:
    """The score of a pre-trained encoder on held-out examples or minimal pairs, as `tracking.encoder_metric` says."""
    if whole.tracking.encoder_metric == "minimal_pairs":
        return _minimal_pairs_evaluation(manifest)
    pretraining = whole.pretraining
    phase = pretraining.phases[-1]
    heldout: dict[str, Any] = {"max_seq_length": phase.max_seq_length, "masking": pretraining.masking}
    of_phase = {"examples": phase.examples, "masked_lm_prob": phase.masked_lm_prob}
    heldout |= {name: value for name, value in of_phase.items() if value is not None}
    trained = manifest.statistics_as(PretrainingStatistics)
    metric = trained.judged_by
    before = trained.heldout_before.get(metric.name, 0.0)
    # Its score before training, or that of always answering the most common token, whichever is better.
    constant = trained.unigram_baseline.get("accuracy", 0.0) if metric.unit == "share" else before
    chance = max(before, constant) if metric.more_is_better else min(before, constant)
    return _heldout_evaluation(whole, chance, trained, {**heldout, "eval_examples": pretraining.eval_examples})


def _minimal_pairs_evaluation(manifest: Manifest) -> Evaluation | None:
    """None if the run scored no pairs."""
    found = manifest.statistics_as(PretrainingStatistics).minimal_pairs
    if found is None:
        return None
    data = digest_of([found.data_sha256, found.method])
    return Evaluation(MINIMAL_PAIRS.name, found.overall.accuracy, data, chance=0.5, shown_as=MINIMAL_PAIRS.label)


def distilled_evaluation(whole: WholeRecipe, manifest: Manifest, eval_examples: int) -> Evaluation | None:
    """The score of a student on held-out examples, by its objective's main metric."""
    heldout = {name: manifest.config.get(name) for name in ("max_seq_length", "masking")}
    trained = manifest.statistics_as(DistillationStatistics)
    metric = trained.judged_by
    # Its scores before training are not chance, if there is another bound: it starts with layers of its teacher.
    chance = 0.0 if metric.more_is_better else trained.heldout_before.get(metric.name, 0.0)
    return _heldout_evaluation(whole, chance, trained, {**heldout, "eval_examples": eval_examples})


def score_in_words(evaluation: Evaluation | None, manifest: Manifest, data: str) -> str:
    """A version's score in one sentence: metric, data, rows, seed and chance level."""
    if evaluation is None:
        return "It has no score on development data."
    rows = manifest.statistics_as(TrialStatistics).num_dev_rows if manifest.stage == FINETUNING else None
    config = manifest.config.get(manifest.stage, manifest.config)
    rows = manifest.config.get("eval_examples", config.get("eval_examples")) if rows is None else rows
    of_rows = "" if rows is None else f", {rows:,} rows"
    seed = manifest.config.get("seed", config.get("seed"))
    of_seed = "" if seed is None else f", seed {seed}"
    return (
        f"Score: {evaluation.label} {evaluation.score:.4f} on {data} "
        f"(digest {evaluation.data[:12]}){of_rows}{of_seed}; chance gives {evaluation.chance:.4f}."
    )


def _heldout_evaluation(
    whole: WholeRecipe, chance: float, trained: TrainingStatistics, heldout: dict[str, Any]
) -> Evaluation | None:
    """None without a score, or if the held-out examples are stored elsewhere."""
    examples = read_manifest(storage.join(whole.run.workspace, EXAMPLES))
    metric, after = trained.judged_by, trained.heldout
    if examples is None or metric.name not in after:
        return None
    files = examples.files_of("heldout", length_directory(heldout["max_seq_length"], heldout.get("examples")))
    if not files:
        return None
    data = digest_of({**heldout, "files": [file.sha256 for file in files]})
    # A diverged loss is more informative than the accuracy next to it.
    score = after[metric.name] if all(map(math.isfinite, after.values())) else math.nan
    vocabulary = examples.inputs.get(VOCABULARY, "")
    return Evaluation(metric.name, score, data, vocabulary, chance, metric.more_is_better, metric.label)
