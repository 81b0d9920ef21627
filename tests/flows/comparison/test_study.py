"""A real study: shared stages are built once, a broken variant leaves the others, a second run builds nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support import REPOSITORY
from tests.support.flows.database_templates import install_prefect_database
from tests.support.preprocessing.small_run import MODEL, RECIPE, write_corpus

from flows.tracking.runs import PARENT_TAG
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import PretrainingStatistics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINING = (
    MODEL
    + """
[pretraining]
phases = [{ max_seq_length = 32, steps = 4, global_batch_size = 8 }]
num_warmup_steps = 1
eval_every_steps = 2
ranks = 1
"""
)
STUDY = """
[study]
name = "trial"
base = "recipe.toml"
workspace = "{workspace}"
parallel_runs = 2
[[study.variants]]
name = "base"
[[study.variants]]
name = "another-rate"
overrides = ["pretraining.learning_rate=1e-3"]
[[study.variants]]
name = "broken"
overrides = ["pretraining.minimal_pairs={{data = 'missing.jsonl'}}", "pretraining.learning_rate=2e-3"]
"""


def study_command(path: Path) -> str:
    """The output of a study that ends with a failure."""
    hidden = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    ended = subprocess.run(
        [sys.executable, "-m", "flows.study", str(path)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: 1 of 3 runs have failed; the other 2 are kept", ended.stderr
    return ended.stdout


def states(workspace: Path) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Flow runs and task runs of the private server of a study, with their states."""
    with closing(sqlite3.connect(workspace / "prefect" / "prefect.db")) as database:
        flow_runs = database.execute("SELECT name, state_type FROM flow_run ORDER BY created").fetchall()
        task_runs = database.execute("SELECT name, state_type FROM task_run ORDER BY created").fetchall()
    return flow_runs, dict(task_runs)


def test_a_study_builds_shared_stages_once_and_leaves_out_what_fails(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    write_corpus(tmp_path / "corpus")
    recipe = RECIPE.format(workspace=tmp_path / "unused", corpus=tmp_path / "corpus") + TRAINING
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "study.toml").write_text(STUDY.format(workspace=workspace))
    install_prefect_database(str(workspace / "prefect"))
    first = study_command(tmp_path / "study.toml")
    assert "broken, seed 12345: FAILED: " in first
    assert "missing.jsonl: no such file or directory" in first

    kinds = sorted(name.rpartition("-")[0] for name in os.listdir(workspace / "stages"))
    assert kinds == ["documents", "examples", "pretraining", "pretraining", "pretraining", "vocabulary"]
    figures = json.loads((workspace / "study.json").read_text())
    losses = []
    for variant in ("base", "another-rate"):
        run = workspace / "runs" / variant / "12345"
        assert os.path.islink(run / "examples")
        manifest = read_manifest(str(run / "pretraining"))
        assert manifest is not None
        losses.append(manifest.statistics_as(PretrainingStatistics).heldout["mlm_loss"])
        (own,) = (each for each in figures["runs"] if each["variant"] == variant)
        assert own["values"]["mlm_loss"] == losses[-1]
        assert own["seconds"] > 0
        assert [step for step, _ in own["curves"]["mlm_loss"]] == [0, 2, 4]
    cell = figures["cells"]["mlm_loss"]["another-rate"]
    assert cell["difference"] == pytest.approx(losses[1] - losses[0])
    page = (workspace / "study.html").read_text()
    assert "2 of 3 runs are complete" in page

    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    (experiment,) = (each for each in client.search_experiments() if each.name == "clozeworks")
    logged = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in logged if PARENT_TAG not in run.data.tags)
    children = {run.info.run_name: run for run in logged if run.data.tags.get(PARENT_TAG) == parent.info.run_id}
    assert {name: run.info.status for name, run in children.items()} == {
        "base, seed 12345": "FINISHED",
        "another-rate, seed 12345": "FINISHED",
        "broken, seed 12345": "FAILED",
    }
    assert children["another-rate, seed 12345"].data.metrics["mlm_loss"] == losses[1]
    # What the training process logged by step is in the same run.
    assert len(client.get_metric_history(children["base, seed 12345"].info.run_id, "pretraining.heldout_mlm_loss")) == 3
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "study")} == {
        "study/study.html",
        "study/study.json",
        "study/study.md",
        "study/study.svg",
    }

    flow_runs, task_runs = states(workspace)
    assert flow_runs == [(f"study {tmp_path / 'study.toml'}", "FAILED")]
    assert task_runs == {
        "base, seed 12345": "COMPLETED",
        "another-rate, seed 12345": "COMPLETED",
        "broken, seed 12345": "FAILED",
    }

    before = {path: path.stat().st_mtime_ns for path in workspace.glob("stages/*/*/manifest.json")}
    again = study_command(tmp_path / "study.toml")
    assert "another-rate, seed 12345: pretraining: complete" in again
    assert {path: path.stat().st_mtime_ns for path in workspace.glob("stages/*/*/manifest.json")} == before
    assert json.loads((workspace / "study.json").read_text()) == figures
