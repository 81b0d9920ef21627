"""Workspaces with special characters of URLs in their names: all files are in them, and none next to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.parameters.requests import RunRequest
from flows.servers.mlflow_database import ARTIFACTS_NAME, DATABASE_NAME
from flows.tracking.runs import Tracker


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%20off", "a?b #ü [1]&c=d;e@f:g"])
def test_runs_and_artifacts_lie_in_the_workspace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = tmp_path / name
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[run]\nname = "odd"\nworkspace = "ws"\n[documents]\nsources = [{ inputs = ["corpus.txt"] }]\n')
    whole = RunRequest(recipe=str(recipe), workspace=str(workspace)).read()
    tracker = Tracker(whole)
    with tracker.flow_run("preprocess", whole) as run_id:
        tracker.log_texts(run_id, {"a.md": "text"}, "report")
    artifacts = workspace / ARTIFACTS_NAME / run_id / "artifacts"
    assert (artifacts / "recipe" / "recipe.toml").read_bytes() == recipe.read_bytes()
    assert Path(tracker.client.download_artifacts(run_id, "report/a.md")).read_text() == "text"
    assert (workspace / DATABASE_NAME).stat().st_size > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "recipe.toml"])
    warned = [record.message for record in caplog.records if "MLflow loads no models from a path" in record.message]
    assert len(warned) == ("%20" in name)
