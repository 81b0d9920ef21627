"""The chain of flows under a real Prefect server, with stand-in stages that write real manifests."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from tests.support import SUPPORT
from tests.support.flows.database_templates import install_prefect_database

from flows.parameters.requests import RunRequest
from flows.running.command import HOME_NAME
from flows.running.outcomes import FlowOutcome
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest

SCRIPT = str(SUPPORT / "flows" / "chain_of_stand_ins.py")
STAGES = ["documents", "vocabulary", "examples", "pretraining", "finetuning"]


def run_chain(recipe: str, *overrides: str) -> FlowOutcome:
    from flows.end_to_end import end_to_end

    return end_to_end(RunRequest(recipe=recipe, overrides=overrides))


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_the_chain_builds_skips_and_rebuilds_what_depends(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe()
    workspace = os.path.join(os.path.dirname(recipe), "ws")

    first = run_chain(recipe)
    assert [(stage.stage, stage.built) for stage in first.stages] == [(name, True) for name in STAGES]
    # Stand-ins have no development data, so nothing shows that they are better than chance.
    assert [(model.uri, model.version, model.new) for model in first.models] == [
        ("models:/trial-encoder@challenger", "1", True),
        ("models:/trial-cola@challenger", "1", True),
    ]

    examples = read_manifest(f"{workspace}/examples")
    assert examples is not None

    second = run_chain(recipe)
    assert [stage.built for stage in second.stages] == [False] * 5
    assert [stage.seconds for stage in second.stages] == pytest.approx(
        [stage.seconds for stage in first.stages], abs=0.01
    )
    assert [(model.version, model.new) for model in second.models] == [("1", False), ("1", False)]
    with open(os.path.join(workspace, "report.md")) as stream:
        assert "skipped (took" in stream.read()

    third = run_chain(recipe, "examples.passes=3")
    assert [stage.built for stage in third.stages] == [False, False, True, True, True]
    assert [(model.version, model.new) for model in third.models] == [("2", True), ("2", True)]

    check_runs(workspace, 3, examples.digest)


def check_runs(workspace: str, flows: int, examples_digest: str) -> None:
    """One parent run per flow, one child per stage, with parameters, metrics, manifests and input data."""
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name == "clozeworks")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == flows
    assert {run.info.status for run in runs} == {"FINISHED"}
    oldest = min(parents, key=lambda run: run.info.start_time)
    assert oldest.data.params["pretraining.phases.0.steps"] == "3"
    assert oldest.data.params["run.name"] == "trial"
    assert oldest.data.metrics == {
        "heldout_after.mlm_accuracy": 0.25,
        "heldout_after.nsp_accuracy": 0.75,
        "cola/pretrained/score": 0.5,
        "cola/pretrained/majority_baseline": 0.0,
        "cola/random/score": 0.125,
        "cola/random/majority_baseline": 0.0,
    }
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == oldest.info.run_id]
    assert sorted(run.info.run_name for run in children) == sorted(STAGES)
    by_name = {run.info.run_name: run for run in children}
    pretraining = by_name["pretraining"].data
    assert pretraining.metrics["heldout_after.mlm_accuracy"] == 0.25
    assert pretraining.metrics["stage_seconds"] > 0
    assert pretraining.params["manifest.num_warmup_steps"] == "1"
    assert by_name["finetuning"].data.metrics["cola/pretrained/score"] == 0.5
    names = [item.path for item in client.list_artifacts(by_name["documents"].info.run_id, "manifests")]
    assert names == ["manifests/documents.json"]
    assert [item.path for item in client.list_artifacts(oldest.info.run_id, "recipe")] == ["recipe/recipe.toml"]
    (consumed,) = by_name["pretraining"].inputs.dataset_inputs
    assert consumed.dataset.name == "examples"
    assert json.loads(consumed.dataset.source) == {"uri": f"{workspace}/examples"}
    assert examples_digest.startswith(consumed.dataset.digest)
    versions = client.search_model_versions("name = 'trial-encoder'")
    assert by_name["pretraining"].info.run_id in [version.run_id for version in versions]


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_a_bad_recipe_fails_the_flow_before_any_stage(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe(("passes = 2", "passes = 0"))
    with pytest.raises(InputError, match=r"examples\.passes = 0"):
        run_chain(recipe)
    assert os.listdir(os.path.dirname(recipe)) == ["recipe.toml"]


def environment(**extra: str) -> dict[str, str]:
    hidden = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
    return {name: value for name, value in os.environ.items() if name not in hidden} | extra


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_all_that_it_started(write_recipe: Callable[..., str]) -> None:
    """The real command line, its own server included: exit code 130, states reported, no process left."""
    recipe = write_recipe()
    workspace = os.path.join(os.path.dirname(recipe), "ws")
    install_prefect_database(os.path.join(workspace, HOME_NAME))
    process = subprocess.Popen(
        [sys.executable, SCRIPT, recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(STAND_IN_HANGS="vocabulary"),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        told = []
        for line in process.stdout:
            told.append(line)
            if "| hanging" in line:
                break
        children = descendants(process.pid)
        assert len(children) == 2, children  # the Prefect server, and the stage
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the complete foreground group
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, (told, rest, errors)
    assert errors == "interrupted; run the same command again to resume what is not complete\n"
    assert "documents    done in" in "".join(told)
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
    with sqlite3.connect(f"{workspace}/prefect/prefect.db") as database:
        states = dict(database.execute("select name, state_type from flow_run"))
    assert set(states.values()) == {"CRASHED"}, states
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("clozeworks")
    assert experiment is not None
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses == {"trial end-to-end": "KILLED", "vocabulary": "KILLED", "documents": "FINISHED"}


@pytest.mark.slow
def test_a_failing_stage_ends_the_command_with_its_last_lines(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe()
    install_prefect_database(os.path.join(os.path.dirname(recipe), "ws", HOME_NAME))
    ended = subprocess.run(
        [sys.executable, SCRIPT, recipe],
        capture_output=True,
        text=True,
        env=environment(STAND_IN_FAILS="vocabulary"),
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith(
        "error: vocabulary ended with exit code 1: this is a bug in Clozeworks (RuntimeError: asked to fail)"
    )
    assert ended.stderr.count("Traceback") == 1  # the stage's own, among its last lines
    assert "RuntimeError: asked to fail" in ended.stderr
    # All logs were sent before the server stopped: nothing waits for a stopped server.
    with open(os.path.join(os.path.dirname(recipe), "ws", "prefect", "server.log")) as stream:
        assert "Traceback" not in stream.read()


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    return [child for child, parent in parents.items() if parent == pid and is_ours(child)]


def is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return b"python" in stream.read()
    except FileNotFoundError:
        return False
