"""Child runs of trials in a real store, and without one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.flows.database_templates import install_mlflow_database

from pipelines.contract.manifest import StageKey
from training.tracking import trial_runs
from training.tracking.flattening import numbers_of
from training.tracking.patience import Patience
from training.tracking.trial_runs import SweepRun, TrialRuns

KEY = StageKey("finetuning", 1, {"task": "rte", "learning_rate": 3e-5, "dropout": None, "model": {"layers": 2}}, {})
NAMES = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
SET_BY_OURS = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_DISABLE_TELEMETRY")


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install_mlflow_database(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *SET_BY_OURS):
        # Set and deleted, so that what is set during the test is taken back after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Store:
    """A real store with an experiment of this test."""

    def __init__(self, uri: str, name: str, artifacts: Path) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        self.experiment_id = self.client.create_experiment(name, artifact_location=str(artifacts))

    def new_run(self) -> str:
        return str(self.client.create_run(self.experiment_id).info.run_id)

    def runs(self, **tags: str) -> list[Any]:
        found = self.client.search_runs([self.experiment_id], order_by=["attributes.start_time"])
        return [run for run in found if tags.items() <= run.data.tags.items()]

    def children(self, parent: str) -> list[Any]:
        return self.runs(**{"mlflow.parentRunId": parent})


@pytest.fixture
def store(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return Store(store_uri, tmp_path.name, tmp_path / "artifacts")


def status_of(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def test_a_trial_is_a_child_run_with_its_settings_and_scores(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = store.new_run()
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    runs = TrialRuns.from_environment()
    assert "MLFLOW_RUN_ID" not in os.environ, "or a trial without a run of its own would log into its parent"
    with runs.trial("rte/a", str(tmp_path / "a"), KEY, {"mnli_first": False}) as run:
        assert [child.info.status for child in store.children(parent)] == ["RUNNING"]
        run.scores = numbers_of({"score": 0.5, "dev": {"f1 %": 0.25}, "task": "rte", "is": True, "no": float("nan")})
    (child,) = store.children(parent)
    assert (child.info.run_id, child.info.run_name, child.info.status) == (run.run_id, "rte/a", "FINISHED")
    assert child.data.params == {
        "task": "rte", "learning_rate": "3e-05", "dropout": "null", "model.layers": "2", "mnli_first": "false",
    }  # fmt: skip
    assert child.data.metrics == {"score": 0.5, "dev.f1 _": 0.25}
    assert status_of(store, parent) == "RUNNING"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_trial_that_fails_ends_its_run(store: Store, tmp_path: Path, error: type[BaseException], status: str) -> None:
    runs = TrialRuns(store.new_run())
    with pytest.raises(error), runs.trial("rte/a", str(tmp_path / "a"), KEY) as run:
        raise error
    assert run.run_id is not None
    assert status_of(store, run.run_id) == status


def test_a_run_that_a_killed_process_left_open_is_ended_when_its_trial_begins_again(
    store: Store, tmp_path: Path
) -> None:
    parent = store.new_run()
    # A process that is killed leaves the block without its end; the generators stay here until the test is over.
    killed = [TrialRuns(parent).trial(f"rte/{name}", str(tmp_path / name), KEY) for name in ("a", "b")]
    left = [each.__enter__() for each in killed]
    with TrialRuns(parent).trial("rte/a", str(tmp_path / "a"), KEY) as again:
        pass
    statuses = {run.info.run_id: run.info.status for run in store.children(parent)}
    assert statuses == {left[0].run_id: "KILLED", left[1].run_id: "RUNNING", again.run_id: "FINISHED"}


def test_without_a_parent_there_is_no_child(store: Store, tmp_path: Path) -> None:
    with TrialRuns.from_environment().trial("rte/a", str(tmp_path / "a"), KEY) as run:
        assert run.run_id is None
    assert store.runs() == []


@pytest.fixture
def absent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_runs, "_patience", Patience(trial_runs.say, limit_seconds=0.0))


@pytest.mark.usefixtures("absent_server", "no_patience")
def test_an_absent_server_costs_a_line_and_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with TrialRuns.from_environment().trial("rte/a", str(tmp_path / "a"), KEY) as run:
        assert run.run_id is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tracking: MLflow is unreachable (")
    assert line.endswith("); metrics of rte/a go to its metrics.jsonl only")
    sweep = SweepRun(str(tmp_path))
    assert sweep.environment() == {}
    sweep.end("FINISHED", {}, {}, "")
    assert len(capsys.readouterr().out.splitlines()) == 1


COLUMNS: Mapping[str, list[Any]] = {"task": ["rte", "rte"], "median": [0.5, 0.25], "std": [None, 0.1]}


def test_a_sweep_has_a_run_of_its_own_and_takes_it_up_again_after_a_kill(store: Store, tmp_path: Path) -> None:
    killed = SweepRun(str(tmp_path))
    assert killed.run_id is not None
    again, other = SweepRun(str(tmp_path)), SweepRun(str(tmp_path / "elsewhere"))
    assert again.environment() == {"MLFLOW_RUN_ID": killed.run_id}
    assert other.run_id != killed.run_id
    killed_trials = [TrialRuns(again.run_id).trial(name, str(tmp_path / name), KEY) for name in ("done", "lost")]
    done, lost = (each.__enter__() for each in killed_trials)
    for _ in range(2):
        again.end("FINISHED", {str(tmp_path / "done"): {"score": 0.5}, str(tmp_path / "lost"): None}, COLUMNS, "text")
    assert done.run_id is not None
    assert lost.run_id is not None
    assert store.client.get_run(done.run_id).data.metrics == {"score": 0.5}
    assert [status_of(store, str(run.run_id)) for run in (again, done, lost)] == ["FINISHED", "FINISHED", "FAILED"]
    assert status_of(store, str(other.run_id)) == "RUNNING"
    # mlflow.load_table searches in the experiment and the store that an earlier test of this process has left active.
    table = json.loads(Path(store.client.download_artifacts(str(again.run_id), "sweep.json")).read_text())
    assert table["columns"] == list(COLUMNS)
    assert table["data"] == [["rte", 0.5, None], ["rte", 0.25, 0.1]]
    assert SweepRun(str(tmp_path), is_new=False).run_id is None, "what has ended is not taken up again"
    assert SweepRun(str(tmp_path)).run_id not in (None, again.run_id)


def test_a_run_that_was_given_is_used_and_left_open(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = store.new_run()
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    sweep = SweepRun(str(tmp_path))
    sweep.end("FINISHED", {}, COLUMNS, "text")
    assert sweep.run_id == given
    assert status_of(store, given) == "RUNNING"
    assert Path(store.client.download_artifacts(given, "sweep.md")).read_text() == "text"
