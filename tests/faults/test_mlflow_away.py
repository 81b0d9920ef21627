"""A real MLflow server that is unreachable when a run starts and when a stage ends: the flow waits and reports it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support.faults.mlflow_server import Server

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.servers.patient_client import HTTP_SETTINGS
from flows.tracking import runs as tracking
from flows.tracking.runs import Tracker
from pipelines.contract.manifest import Manifest, StageKey

AWAY_SECONDS = 2.0
RECIPE = """
[run]
name = "away"
workspace = "{directory}/ws"
[documents]
sources = [{{ inputs = ["corpus.txt"] }}]
[tracking]
mlflow_tracking_uri = "{uri}"
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in HTTP_SETTINGS:
        # Set and deleted, so that the client's changes are reverted after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def whole(server: Server, tmp_path: Path) -> WholeRecipe:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(directory=tmp_path, uri=server.uri))
    return RunRequest(recipe=str(path)).read()


def manifests() -> dict[str, Manifest]:
    return {"documents": StageKey("documents", 1, {"seed": 1}, {}).manifest([], {"documents": 3}, "0")}


def away_for_a_while(server: Server) -> threading.Timer:
    server.kill()
    timer = threading.Timer(AWAY_SECONDS, server.start)
    timer.start()
    return timer


@pytest.mark.slow
def test_a_flow_outlasts_an_absence(
    server: Server, whole: WholeRecipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(whole)
    back = away_for_a_while(server)
    with tracker.flow_run("preprocess", whole) as parent:
        back.join()
        with tracker.stage_run("documents", parent, "k") as stage:
            back = away_for_a_while(server)
            tracker.log_stage(stage, manifests(), 1.5)
            back.join()
    said = [record.message for record in caplog.records if "tracking" in record.message]
    assert [("not respond" in line, "responds again" in line) for line in said] == [(True, False), (False, True)] * 2
    client = MlflowClient(server.uri)
    runs = {run.info.run_id: run for run in client.search_runs([tracker.experiment_id])}
    assert set(runs) == {parent, stage}, "a request that was repeated has made a second run"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[stage].data.metrics == {"stage_seconds": 1.5, "documents": 3.0}
    assert [item.path for item in client.list_artifacts(stage)] == ["manifests"]

    # It stays unreachable: the flow still ends, and reports what is missing in MLflow.
    caplog.clear()
    monkeypatch.setattr(tracker.patience, "_limit_seconds", 1.0)
    other = "another"
    with tracker.flow_run("pretrain", whole) as parent, tracker.stage_run("pretraining", parent, other) as stage:
        server.kill()
        tracker.log_stage(stage, manifests(), 1.5)
    said = [record.message for record in caplog.records if "MLflow" in record.message]
    missing = [line.rpartition("; ")[2] for line in said if "does not respond" not in line]
    assert missing == [
        "figures of documents are not logged",
        "the end of pretraining is not logged",
        "the end of away pretrain is not logged",
    ]
    server.start()
    with tracker.flow_run("pretrain", whole) as again, tracker.stage_run("pretraining", again, other) as same:
        assert (again, same) == (parent, stage), "it resumes in the runs that have not ended"
        tracker.log_stage(same, manifests(), None)
    assert client.get_run(stage).data.metrics["documents"] == 3.0


@pytest.mark.slow
def test_figures_of_a_run_that_goes_on_stand_there_once(tmp_path: Path) -> None:
    """Without a server: the same rule for SQLite."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(directory=tmp_path, uri="").replace('mlflow_tracking_uri = ""', ""))
    whole = RunRequest(recipe=str(path)).read()
    tracker = Tracker(whole)
    with tracker.flow_run("preprocess", whole) as parent, tracker.stage_run("documents", parent, "k") as stage:
        for scores in ({"score": 0.5, "loss": 2.0}, {"score": 0.5, "loss": 1.0}):
            tracker.log_metrics(stage, scores)
        # After a kill between the figures and the tags, the stage is logged once more.
        for _ in range(2):
            tracker._log_stage(stage, manifests(), None)
            tracker.client.delete_tag(stage, tracking.SKIPPED_TAG)
    history = {name: tracker.client.get_metric_history(stage, name) for name in ("score", "loss", "documents")}
    assert {name: [point.value for point in points] for name, points in history.items()} == {
        "score": [0.5],
        "loss": [2.0, 1.0],
        "documents": [3.0],
    }
