"""Tracks a study in MLflow: one parent run with its page and figures, one child run for each variant and seed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from flows.comparison.results import RunResult
from flows.comparison.study_file import Run
from flows.parameters.whole_recipe import WholeRecipe
from flows.tracking.runs import Tracker
from pipelines.contract.workspace import FINETUNING, PRETRAINING

_FLOW, _FOLDER = "study", "study"


class StudyTracking:
    """The runs of one study in its tracking store: the recipe's server, or SQLite in the workspace of the study."""

    def __init__(self, whole: WholeRecipe) -> None:
        """Open the store; `whole` is a recipe of the study with the study's name and workspace.

        Raises:
            InputError: the store does not answer, or its database cannot be used.
        """
        self._whole, self._tracker = whole, Tracker(whole)

    def parent(self) -> AbstractContextManager[str]:
        """The study's run, yields its id; a study that was interrupted resumes in its run."""
        return self._tracker.flow_run(_FLOW, self._whole)

    def child(self, run: Run, parent_run_id: str) -> AbstractContextManager[str]:
        """The run of a variant with one seed, yields its id; it fails if the block raises."""
        return self._tracker.stage_run(run.label, parent_run_id, "\n".join([run.label, *run.overrides]))

    def environment(self, run_id: str) -> dict[str, str]:
        """Variables with which the processes of a run log their metrics by step."""
        return self._tracker.child_environment(run_id)

    def log_result(self, run_id: str, result: RunResult) -> None:
        """Log what a complete run measured, and its changes of the base recipe."""
        figures = {"tokens": float(result.tokens), "flops": result.flops}
        name = f"{PRETRAINING if result.tokens else FINETUNING}_seconds"
        figures |= {} if result.seconds is None else {name: result.seconds}
        self._tracker.log_metrics(run_id, {**result.values, **figures})
        self._tracker.log_texts(run_id, {"overrides.txt": "\n".join(result.run.overrides) + "\n"}, _FOLDER)

    def log_files(self, run_id: str, texts: Mapping[str, str]) -> None:
        """Log the files of the comparison."""
        self._tracker.log_texts(run_id, texts, _FOLDER)
