"""Final figures of a complete run for its MLflow run, compared on the page of all runs."""

from __future__ import annotations

from flows.running.outcomes import FlowOutcome
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.workspace import DISTILLATION, FINETUNING, PRETRAINING
from pipelines.statistics.training import DistillationStatistics, PretrainingStatistics, TrialStatistics
from training.stages.finetuning import SWEEP
from training.tracking.flattening import numbers_of


def final_scores(outcome: FlowOutcome) -> dict[str, float]:
    """Held-out figures of encoders and scores of tasks, under the names that the runs of the stages use."""
    scores: dict[str, float] = {}
    for stage in outcome.stages:
        for name, directory in stage.directories.items():
            if (manifest := read_manifest(directory)) is not None:
                scores |= (
                    _trial_scores(name, manifest) if stage.stage in (FINETUNING, SWEEP) else _heldout_scores(manifest)
                )
    return scores


def _trial_scores(name: str, manifest: Manifest) -> dict[str, float]:
    trial = manifest.statistics_as(TrialStatistics)
    return numbers_of({f"{name}/score": trial.score, f"{name}/majority_baseline": trial.majority_baseline})


def _heldout_scores(manifest: Manifest) -> dict[str, float]:
    if manifest.stage == DISTILLATION:
        return numbers_of({"student": {"heldout": manifest.statistics_as(DistillationStatistics).heldout}})
    if manifest.stage == PRETRAINING:
        return numbers_of({"heldout_after": manifest.statistics_as(PretrainingStatistics).heldout})
    return {}
