"""A real study: shared stages are built once, a broken variant leaves the others, a second run builds nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support.preprocessing.small_run import RECIPE, write_corpus

from flows import study as study_command
from flows.tracking.runs import PARENT_TAG
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import PretrainingStatistics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINING = """
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 64
[pretraining]
phases = [{ max_seq_length = 32, steps = 4, global_batch_size = 8 }]
num_warmup_steps = 1
eval_every_steps = 2
ranks = 1
"""
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


def test_a_study_builds_shared_stages_once_and_leaves_out_what_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "ws"
    write_corpus(tmp_path / "corpus")
    recipe = RECIPE.format(workspace=tmp_path / "unused", corpus=tmp_path / "corpus") + TRAINING
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "study.toml").write_text(STUDY.format(workspace=workspace))
    assert study_command.main([str(tmp_path / "study.toml")]) == 1
    first = capsys.readouterr().out
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
    }

    before = {path: path.stat().st_mtime_ns for path in workspace.glob("stages/*/*/manifest.json")}
    assert study_command.main([str(tmp_path / "study.toml")]) == 1
    again = capsys.readouterr().out
    assert "another-rate, seed 12345: pretraining: complete" in again
    assert {path: path.stat().st_mtime_ns for path in workspace.glob("stages/*/*/manifest.json")} == before
    assert json.loads((workspace / "study.json").read_text()) == figures
