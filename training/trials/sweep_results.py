"""Results of a task's sweep: scores of each point of the grid, the chosen point, and which weights are kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.contract import storage
from pipelines.contract.workspace import MODEL_DIRECTORY
from training.settings.sweep import Cell
from training.trials.trial import Trial

SUMMARY_NAME, BEST_NAME = "summary.json", "best.json"


@dataclass(frozen=True)
class CellScores:
    """Scores of one point of the grid, by seed; at least one."""

    cell: Cell
    scores: Mapping[int, float]

    @property
    def median(self) -> float:
        return statistics.median(self.scores.values())

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample (n - 1); None of a single score."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def best(self) -> float:
        return max(self.scores.values())

    def record(self) -> dict[str, Any]:
        """Values for summary.json and the comparison."""
        return {
            **self.cell._asdict(),
            "n": len(self.scores),
            "median": self.median,
            "mean": self.mean,
            "std": self.deviation,
            "best": self.best,
        }


def chosen_of(cells: Sequence[CellScores]) -> CellScores | None:
    """The point with the best median; ties go to the best mean, then to the first; None without points."""
    return max(cells, key=lambda cell: (cell.median, cell.mean), default=None)


class TaskSweep:
    """The trials of one task and their state; maintains the task's summary files and weights."""

    def __init__(self, directory: str, trials: Sequence[Trial], keeps_all_models: bool, mnli_first: bool) -> None:
        """Check which trials are complete.

        Args:
            directory: of the task's sweep.
            trials: all of them, in the order of the plan.
            keeps_all_models: keep the weights of all trials, not only the best one's.
            mnli_first: recorded in the summary.
        """
        self.directory, self.trials = directory, tuple(trials)
        self._keeps_all_models, self._mnli_first = keeps_all_models, mnli_first
        self._complete = {trial: trial.statistics() for trial in trials if trial.difference() is None}
        self.problems: dict[Trial, str] = {}

    @property
    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial in self._complete]

    @property
    def outcomes(self) -> dict[str, Mapping[str, Any] | None]:
        """Statistics by directory; None for an incomplete trial."""
        return {
            trial.directory: self._complete[trial].to_json() if trial in self._complete else None
            for trial in self.trials
        }

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best score; ties go to the first in the plan, regardless of finishing order."""
        return max(self.complete, key=self.score, default=None)

    @property
    def metric(self) -> str:
        return next((facts.metric for facts in self._complete.values()), "")

    def score(self, trial: Trial) -> float:
        return self._complete[trial].score

    def cells(self) -> list[CellScores]:
        """Points with at least one score, in the order of the grid."""
        found: dict[Cell, dict[int, float]] = {trial.cell: {} for trial in self.trials}
        for trial in self.complete:
            found[trial.cell][trial.seed] = self.score(trial)
        return [CellScores(cell, scores) for cell, scores in found.items() if scores]

    def to_train(self, tried: Collection[Trial]) -> list[Trial]:
        """The remaining trials, except those tried: incomplete ones and then the best one, if its weights were deleted
        while another one was better."""
        left = [trial for trial in self.trials if trial not in self._complete and trial not in tried]
        best = self.best
        if not left and best is not None and best not in tried and not best.has_model():
            return [best]
        return left

    def enter(self, trial: Trial, problem: str | None) -> None:
        """Record a finished trial, and write the task's files."""
        if problem is None and (difference := trial.difference()):
            problem = f"it is not complete ({difference})"
        if problem is None:
            self._complete[trial] = trial.statistics()
            self.problems.pop(trial, None)
        else:
            self._complete.pop(trial, None)
            self.problems[trial] = problem
        self.settle()

    def settle(self) -> None:
        """Delete weights that are not kept; write summary.json, and best.json if there is a best trial."""
        best, chosen = self.best, chosen_of(self.cells())
        if not self._keeps_all_models:
            for trial in self.complete:
                if trial != best:
                    trial.drop_model()
        summary = {
            "task": self.trials[0].task,
            "metric": self.metric,
            "mnli_first": self._mnli_first,
            "trials": len(self.trials),
            "complete": len(self._complete),
            "problems": {trial.name: problem for trial, problem in self.problems.items()},
            "cells": [
                {**cell.record(), "scores": {str(seed): score for seed, score in cell.scores.items()}}
                for cell in self.cells()
            ],
            "chosen": chosen.cell._asdict() if chosen else None,
            "best": best.name if best else None,
        }
        _write_json(storage.join(self.directory, SUMMARY_NAME), summary)
        if best is not None:
            found = {
                "trial": best.name,
                "model": f"{best.name}/{MODEL_DIRECTORY}" if best.has_model() else None,
                "metric": self.metric,
                "score": self.score(best),
                **best.cell._asdict(),
                "seed": best.seed,
                "is_final": len(self._complete) == len(self.trials),
            }
            _write_json(storage.join(self.directory, BEST_NAME), found)


COLUMNS = (
    "task", "metric", "batch_size", "learning_rate", "num_train_epochs", "n", "median", "mean", "std", "best", "chosen",
)  # fmt: skip
"""Columns of the comparison."""


def comparison(sweeps: Sequence[TaskSweep]) -> dict[str, list[Any]]:
    """The comparison by columns, one row per point of a task's grid."""
    rows = []
    for sweep in sweeps:
        cells = sweep.cells()
        chosen = chosen_of(cells)
        rows += [
            {"task": sweep.trials[0].task, "metric": sweep.metric, **cell.record(), "chosen": cell is chosen}
            for cell in cells
        ]
    return {name: [row[name] for row in rows] for name in COLUMNS}


def table_of(sweeps: Sequence[TaskSweep]) -> str:
    """The comparison as an aligned Markdown table, and the best trial of each task."""
    columns = comparison(sweeps)
    columns["learning_rate"] = [repr(rate) for rate in columns["learning_rate"]]
    rows = [[name.replace("_", " ") for name in COLUMNS]]
    rows += [[_shown(value) for value in row] for row in zip(*columns.values(), strict=True)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    for sweep in sweeps:
        if (best := sweep.best) is not None:
            lines += ["", f"{sweep.trials[0].task}: best trial {best.name}, {sweep.metric} {sweep.score(best):.4f}"]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _write_json(path: str, value: Mapping[str, Any]) -> None:
    storage.write_bytes(path, json.dumps(value, indent=1).encode() + b"\n")
