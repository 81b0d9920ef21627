"""`status` and `estimate` show where `--continue` would start, and what differs in kept results."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.support.training.finished_run import write_finished_run
from tests.support.training.synthetic_run import write_workspace

from flows import estimate, status
from flows.inspection.workspace import statuses_of_recipe
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from pipelines.results.kept import kept_directories
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

LENGTHS = (
    "examples.lengths=[{max_seq_length=32, max_predictions_per_seq=5}, {max_seq_length=64, max_predictions_per_seq=10}]"
)
LONGER = "pretraining.phases.1.steps=30"


def test_a_finished_run_that_could_be_continued_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = write_workspace(str(tmp_path / "run"))
    settings = [f"run.workspace={json.dumps(workspace.path)}", LENGTHS, 'documents.sources=[{inputs=["*.txt"]}]']
    arguments = [workspace.recipe, *(part for each in (*settings, LONGER) for part in ("--set", each))]
    cost = [*arguments, "--corpus-bytes", "1e6", "--json"]
    with pytest.raises(InputError, match="has no finished pre-training with a checkpoint"):
        estimate.main([*cost, "--continue"])
    inputs = pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, settings)))
    write_finished_run(inputs, step=18)
    capsys.readouterr()

    assert status.main([*arguments, "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out)["stages"] if row["name"] == "pretraining"]
    assert row["state"] == "stale"
    assert row["detail"].startswith("with --continue 26 steps after step 18: pretraining.phases.1.steps was 6, is 30")
    assert row["numbers"]["continue_step"] == 18

    estimate.main(cost)
    complete = json.loads(capsys.readouterr().out)
    estimate.main([*cost, "--continue"])
    left = json.loads(capsys.readouterr().out)
    assert [phase["steps"] for phase in complete["phases"]] == [14, 30]
    assert [phase["steps"] for phase in left["phases"]] == [26]
    assert "pre-training continues from step 18 of the finished run: 26 steps are left" in left["warnings"]

    # As kept result: size with checkpoints, date of completion, what the current result has otherwise.
    os.rename(inputs.directory, f"{inputs.directory}.1")
    longer = pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, [*settings, LONGER])))
    write_finished_run(longer, step=40)
    os.utime(f"{inputs.directory}.1/manifest.json", (86_400, 86_400))
    assert kept_directories(inputs.directory) == [f"{inputs.directory}.1"]
    whole = WholeRecipe.check(read_recipe(workspace.recipe, [*settings, LONGER]))
    (kept,) = [each for each in statuses_of_recipe(whole) if each.name == "pretraining.1"]
    assert kept.detail.startswith("earlier result: 20 steps, 5 tokens, completed 1970-01-02 00:00 UTC, ")
    assert kept.detail.endswith("pretraining.phases.1.steps was 6, is 30")
    assert kept.numbers["size_bytes"] > 2000
