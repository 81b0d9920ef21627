"""MLflow runs of fine-tuning trials, nested in the run of the command; MLflow errors never end training.

Each trial is a child run: its settings as parameters, its curves by step (sent by `tracker`), its scores at the end.
The parent is the run named by the environment, or for a sweep a run of its own.
"""

from __future__ import annotations

import json
import logging
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, digest_of
from training.tracking.flattening import flatten, numbers_of
from training.tracking.mlflow_sender import MLFLOW_ENVIRONMENT, say
from training.tracking.patience import Patience, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
TRIAL_TAG = "clozeworks.trial"
SWEEP_TAG = "clozeworks.sweep"
TABLE_NAME, TEXT_NAME = "sweep.json", "sweep.md"

ResultT = TypeVar("ResultT")

_RUN_VARIABLE, _URI_VARIABLE = "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"
_REASON_CHARACTERS = 160
_TABLES_TAG = "mlflow.loggedArtifacts"
_patience = Patience(say)
"""Shared by this process, so that an unreachable server makes it wait once."""


class TrialRun:
    """The child run of one trial; inactive without a run id."""

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id
        self.scores: dict[str, float] = {}
        """Scores to log at the end of the run."""


class TrialRuns:
    """Creates a child run for each trial of this process, under one parent; does nothing without a parent."""

    def __init__(self, parent_run_id: str | None) -> None:
        self.parent_run_id = parent_run_id

    @classmethod
    def from_environment(cls) -> TrialRuns:
        """Children of the run in MLFLOW_RUN_ID, if MLFLOW_TRACKING_URI is set, too.

        Removes the variable from this process's environment: a trial without a child run must not log into its
        parent, where the curves of several trials would be mixed.
        """
        run_id = os.environ.pop(_RUN_VARIABLE, None)
        return cls(run_id if os.environ.get(_URI_VARIABLE) else None)

    @contextmanager
    def trial(
        self, name: str, directory: str, key: StageKey, more: Mapping[str, Any] | None = None
    ) -> Iterator[TrialRun]:
        """Open the run of a trial around its training; its status follows the body: FINISHED, FAILED or KILLED.

        A run left open by a killed process for the same trial is ended first. If MLflow is unreachable, the body runs
        without a run, and its metrics are in metrics.jsonl only.

        Args:
            name: of the run.
            directory: of the trial.
            key: of the trial; its settings become the parameters.
            more: further parameters.
        """
        parameters = flatten(key.config) | dict(more or {})
        parent_run_id = self.parent_run_id
        if parent_run_id is None:
            yield TrialRun(None)
            return
        run = TrialRun(
            _softly(
                f"metrics of {name} go to its metrics.jsonl only",
                lambda: _create_child(parent_run_id, name, trial_digest(directory), parameters),
            )
        )
        status = "KILLED"  # Ctrl-C is no `Exception`
        try:
            yield run
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if (run_id := run.run_id) is not None:
                _softly(f"the end of {name} is not logged", lambda: _end(run_id, run.scores, status))


class SweepRun:
    """The parent run of all trials of a sweep: the one named by the environment, or else one of its own.

    A sweep that is resumed after a kill reopens its own run.
    """

    def __init__(self, directory: str, is_new: bool = True) -> None:
        """Find or create the run.

        Args:
            directory: of all fine-tuning in the workspace; identifies the sweep.
            is_new: create a run if there is none; otherwise only reopen one left by a killed sweep.
        """
        self.run_id: str | None = None
        self._is_own = False
        if not os.environ.get(_URI_VARIABLE):
            return
        self.run_id = os.environ.get(_RUN_VARIABLE)
        if self.run_id is None:
            digest = digest_of({"sweep": _place(directory)})
            without = "the sweep's trials have no runs, their metrics are in metrics.jsonl only"
            self.run_id = _softly(without, lambda: _own_sweep_run(digest, is_new))
            self._is_own = self.run_id is not None

    def environment(self) -> dict[str, str]:
        """Variables by which a worker nests its trials in this run."""
        return {} if self.run_id is None else {_RUN_VARIABLE: self.run_id}

    def end(
        self,
        status: str,
        trials: Mapping[str, Mapping[str, Any] | None],
        columns: Mapping[str, Sequence[Any]],
        text: str,
    ) -> None:
        """Log the comparison, end runs of trials that are still open, and end the sweep's own run.

        Args:
            status: FINISHED, FAILED or KILLED.
            trials: statistics by directory, None for an incomplete trial.
            columns: the comparison as a table, one list per column.
            text: the comparison as Markdown.
        """
        if (run_id := self.run_id) is None:
            return
        _softly("the sweep's comparison is not logged", lambda: _log_comparison(run_id, columns, text))
        _softly("some runs of trials are left open", lambda: _end_left_open(run_id, trials))
        if self._is_own:
            _softly("the end of the sweep is not logged", lambda: _client().set_terminated(run_id, status))


def trial_digest(directory: str) -> str:
    """Identifies the runs of one trial."""
    return digest_of({"trial": _place(directory)})


def _place(directory: str) -> str:
    """A directory as every process names it, whatever its working directory."""
    return os.path.abspath(directory) if storage.is_local(directory) else directory


def _client() -> MlflowClient:
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Explicit, because a URI that code of this process has set for MLflow globally would override the variable.
    return MlflowClient(os.environ[_URI_VARIABLE])


def _create_child(parent_run_id: str, name: str, digest: str, parameters: Mapping[str, Any]) -> str:
    from mlflow.entities import Param

    client = _client()
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    left_open = f"tags.`{TRIAL_TAG}` = '{digest}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], left_open):
        client.set_terminated(run.info.run_id, "KILLED")
    tags = {PARENT_TAG: parent_run_id, TRIAL_TAG: digest}
    run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    params = [Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in parameters.items()]
    client.log_batch(run_id, params=params)
    return str(run_id)


def _end(run_id: str, scores: Mapping[str, float], status: str) -> None:
    from mlflow.entities import Metric

    now_ms = time.time_ns() // 1_000_000
    client = _client()
    client.log_batch(run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in scores.items()])
    client.set_terminated(run_id, status)


def _own_sweep_run(digest: str, is_new: bool) -> str | None:
    client = _client()
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if experiment_id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found else client.create_experiment(name)
    unfinished = f"tags.`{SWEEP_TAG}` = '{digest}' and attributes.status != 'FINISHED'"
    for run in client.search_runs([experiment_id], unfinished, max_results=1, order_by=["attributes.start_time DESC"]):
        client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)
    if not is_new:
        return None
    return str(client.create_run(experiment_id, run_name="sweep", tags={SWEEP_TAG: digest}).info.run_id)


def _end_left_open(parent_run_id: str, trials: Mapping[str, Mapping[str, Any] | None]) -> None:
    by_digest = {trial_digest(directory): statistics for directory, statistics in trials.items()}
    client = _client()
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if (digest := run.data.tags.get(TRIAL_TAG)) in by_digest:
            statistics = by_digest[digest]
            _end(run.info.run_id, numbers_of(statistics or {}), "FINISHED" if statistics else "FAILED")


def _log_comparison(run_id: str, columns: Mapping[str, Sequence[Any]], text: str) -> None:
    """Log a text, and a table in the form of MLflow's `log_table`, which itself would append to an earlier one."""
    client = _client()
    names = list(columns)
    table = {"columns": names, "data": [list(row) for row in zip(*columns.values(), strict=True)]}
    client.log_text(run_id, json.dumps(table), TABLE_NAME)
    client.log_text(run_id, text, TEXT_NAME)
    client.set_tag(run_id, _TABLES_TAG, json.dumps([{"path": TABLE_NAME, "type": "table"}]))


def _softly(consequence: str, call: Callable[[], ResultT]) -> ResultT | None:
    """Call MLflow and return the result; if it keeps failing, print one line and return None."""
    try:
        return _patience.call(call)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training continues
        reason = textwrap.shorten(first_line(error), _REASON_CHARACTERS)
        print(f"tracking: MLflow is unreachable ({reason}); {consequence}", flush=True)
        return None
