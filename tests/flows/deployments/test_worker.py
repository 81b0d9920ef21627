"""Deployments on a real server, run by real workers: schedules, forms, artifacts, cancelling, a machine that dies."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.flows.prefect_site import (
    PrefectSite,
    descendants,
    has_sigterm_waiting,
    kill,
    prefect_site,
    signal_all,
    trainers_in,
    wait_for,
)

from pipelines.contract.storage import sha256_of

STEPS = 250
SETTINGS: dict[str, Any] = {
    "recipe": "flows/recipes/demo.toml",
    "documents": {"sources": [{"format": "python-docstrings", "inputs": ["rich", "numpy"]}], "num_shards": 2},
    "vocabulary": {"size": 1000},
    "examples": {"lengths": [{"max_seq_length": 32, "max_predictions_per_seq": 5}]},
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    },
    "pretraining": {
        "phases": [{"max_seq_length": 32, "steps": STEPS, "global_batch_size": 8}],
        "num_warmup_steps": 5,
        "log_every_steps": 5,
        "eval_examples": 16,
        "ranks": 2,
    },
    "finetuning": {
        "max_seq_length": 32,
        "num_train_epochs": 1,
        "compare_with_random": False,
        "word_order": {"max_train_examples": 64, "max_dev_examples": 32},
    },
    "overrides": ["run.workers=1"],
}
PRETRAINING = {name: value for name, value in SETTINGS.items() if name in ("recipe", "model", "pretraining")}
# The other sections decide the inputs of the stage, so they must be set here too.
OTHERS = ["vocabulary.size=1000", "examples.lengths=[{max_seq_length=32,max_predictions_per_seq=5}]"]
OTHERS += ["finetuning.max_seq_length=32"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[PrefectSite]:
    with prefect_site(str(tmp_path_factory.mktemp("prefect")), str(repository)) as running:
        deployed = running.command("flows.deploy", "--types", "process", "docker", "kubernetes")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        yield running


@pytest.fixture(scope="module")
def finished(site: PrefectSite, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The demo recipe with small settings, run by a worker: the run's id and its workspace."""
    workspace = str(tmp_path_factory.mktemp("demo") / "ws")
    site.start_worker("clozeworks-cpu")
    run = site.run(site.deployment("end-to-end", "nightly-smoke"), {**SETTINGS, "workspace": workspace}, "mine")
    state = site.wait_until_ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    assert site.get(f"/flow_runs/{run}")["name"] == "mine", "the name that it was given on the page"
    return run, workspace


def test_deploying_makes_pools_limits_schedules_and_forms(site: PrefectSite) -> None:
    pools = {pool["name"]: pool for pool in site.post("/work_pools/filter", {})}
    assert {name: pool["type"] for name, pool in pools.items() if name.startswith("clozeworks")} == {
        "clozeworks-cpu": "process",
        "clozeworks-gpu": "process",
        "clozeworks-flows": "process",
        "clozeworks-trials": "process",
        "clozeworks-docker": "docker",
        "clozeworks-kubernetes": "kubernetes",
    }
    assert (pools["clozeworks-gpu"]["concurrency_limit"], pools["clozeworks-trials"]["concurrency_limit"]) == (1, 8)
    pretrain = site.deployment("pretrain", "pretrain")
    assert (pretrain["work_pool_name"], pretrain["enforce_parameter_schema"]) == ("clozeworks-gpu", True)
    assert pretrain["global_concurrency_limit"]["limit"] == 1
    assert pretrain["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    form = pretrain["parameter_openapi_schema"]["definitions"]["PretrainingForm"]["properties"]
    assert form["zero_stage"]["anyOf"][0] == {"maximum": 3, "minimum": 0, "type": "integer"}
    gpus = site.deployment("pretrain", "pretrain-kubernetes")["job_variables"]["gpus"]
    assert gpus == "1"
    nightly = site.deployment("end-to-end", "nightly-smoke")
    planned = wait_for(
        lambda: site.post(
            "/flow_runs/filter",
            {
                "deployments": {"id": {"any_": [nightly["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            },
        ),
        "runs that the schedule plans",
    )
    assert planned[0]["expected_start_time"][11:16] == "02:30"
    again = site.command("flows.deploy")
    assert again.returncode == 0, again.stderr
    assert "clozeworks-gpu (process) exists" in again.stdout


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"recipe": "x.toml", "pretraining": {"zero_stage": 4}}, "zero_stage"),
        ({"recipe": "x.toml", "pretraining": {"zero_stag": 2}}, "zero_stag"),
        ({"recipe": 3}, "recipe"),
    ],
)
def test_a_wrong_value_is_refused_before_there_is_a_run(
    site: PrefectSite, request_: dict[str, Any], words: str
) -> None:
    deployment = site.deployment("pretrain", "pretrain")
    path = f"/deployments/{deployment['id']}/create_flow_run"
    problem = site.refused(path, {"parameters": {"request": request_}})
    assert words in problem
    assert "\n" not in problem


def test_a_scheduled_run_completes_and_tells_what_it_found(site: PrefectSite, finished: tuple[str, str]) -> None:
    run, workspace = finished
    artifacts = site.artifacts(run)
    assert {key: artifact["type"] for key, artifact in artifacts.items()} == {
        "demo-documents-progress": "progress",
        "demo-vocabulary-progress": "progress",
        "demo-examples-progress": "progress",
        "demo-pretraining-progress": "progress",
        "demo-finetuning-progress": "progress",
        "demo-corpus": "table",
        "demo-heldout": "table",
        "demo-scores": "table",
        "demo-report": "markdown",
        "demo-workspace": "markdown",
    }
    assert artifacts["demo-pretraining-progress"]["data"] == 100.0
    scores = json.loads(artifacts["demo-scores"]["data"])
    assert [(row["task"], row["from"]) for row in scores] == [("word-order", "pretrained")]
    facts = {row["fact"]: row["value"] for row in json.loads(artifacts["demo-corpus"]["data"])}
    manifest = json.loads(Path(workspace, "documents", "manifest.json").read_text())
    assert facts["documents kept"] == manifest["statistics"]["documents_kept"]
    assert artifacts["demo-report"]["data"] == Path(workspace, "report.md").read_text()
    lines = site.log_lines(run)
    assert any(f"| pretraining: step {STEPS}/{STEPS}: loss" in line for line in lines)
    assert len(site.family(run)) == 4  # the chain, and three flows within it


def train_until_step(site: PrefectSite, finished: tuple[str, str], workspace: str) -> tuple[str, list[Any]]:
    """Start pre-training on the finished run's examples, and stop its ranks at a step in the middle."""
    for name in ("documents", "vocabulary", "examples"):
        shutil.copytree(os.path.join(finished[1], name), os.path.join(workspace, name), dirs_exist_ok=True)
    run = site.run(
        site.deployment("pretrain", "pretrain"), {**PRETRAINING, "workspace": workspace, "overrides": OTHERS}
    )
    return run, hold_in_training(site, run, workspace)


def hold_in_training(site: PrefectSite, run: str, workspace: str, after_step: int = 0) -> list[Any]:
    """Stop the ranks as soon as they have logged a step, so that what follows does not depend on their speed."""

    looks = itertools.count(1)

    def has_stepped() -> bool:
        # The server is asked every two seconds: it has two cores to share with the ranks that are to step.
        if next(looks) % 100 == 0:
            assert site.state(run)["type"] not in ("FAILED", "CRASHED"), site.state(run)
        return last_step(workspace) > after_step

    wait_for(has_stepped, "the first steps", pause_seconds=0.02)
    ranks = trainers_in(workspace, ranks_only=True)
    signal_all(ranks, signal.SIGSTOP)
    assert after_step < last_step(workspace) < STEPS
    return ranks


def last_step(workspace: str) -> int:
    try:
        building = Path(workspace, "pretraining.building")
        place = building if building.exists() else Path(workspace, "pretraining")
        lines = (place / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


def logged_steps(workspace: str) -> list[int]:
    lines = Path(workspace, "pretraining", "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "mlm_loss" in record]


def check_equals_uninterrupted(finished: tuple[str, str], workspace: str) -> None:
    """Every step is logged once, and the encoder is bit-identical to that of an uninterrupted run."""
    assert logged_steps(workspace) == logged_steps(finished[1]) == list(range(5, STEPS + 1, 5))
    name = os.path.join("pretraining", "encoder", "model.safetensors")
    assert sha256_of(os.path.join(workspace, name)) == sha256_of(os.path.join(finished[1], name))


def test_cancelled_and_crashed_runs_resume(site: PrefectSite, finished: tuple[str, str], tmp_path: Path) -> None:
    """Cancelled through the API, run again, its machine lost, its run scheduled once more: the same encoder."""
    workspace = str(tmp_path / "ws")
    worker = site.start_worker("clozeworks-gpu")
    run, ranks = train_until_step(site, finished, workspace)

    site.set_state(run, "CANCELLING")
    wait_for(lambda: all(map(has_sigterm_waiting, ranks)), "SIGTERM at every rank")
    signal_all(ranks, signal.SIGCONT)
    assert site.wait_until_ended(run)["type"] == "CANCELLED"
    assert any("a checkpoint is written, run again to resume" in line for line in site.log_lines(run))
    assert trainers_in(workspace) == []

    request = {**PRETRAINING, "workspace": workspace, "overrides": OTHERS}
    again = site.run(site.deployment("pretrain", "pretrain"), request)
    ranks = hold_in_training(site, again, workspace, after_step=last_step(workspace))
    # Lines reach the server in batches, some seconds after the ranks have continued.
    wait_for(
        lambda: any("resumed from checkpoint" in line for line in site.log_lines(again)),
        "the line about the checkpoint",
    )
    # As when a machine loses its power, but for the ranks, which have a second to see that they are alone.
    trainers = trainers_in(workspace)
    lost = [process for process in descendants(worker) if process not in trainers]
    worker.kill()
    worker.wait()
    for process in lost:
        kill(process)
    signal_all(ranks, signal.SIGCONT)
    wait_for(lambda: not trainers_in(workspace), "the end of the orphaned ranks")
    assert site.state(again)["type"] == "RUNNING"  # until the automation notices, after ten minutes

    site.set_state(again, "SCHEDULED", "AwaitingRetry")
    site.start_worker("clozeworks-gpu")
    assert site.wait_until_ended(again)["type"] == "COMPLETED"
    check_equals_uninterrupted(finished, workspace)


def test_a_failed_run_says_why_in_its_message(site: PrefectSite, finished: tuple[str, str]) -> None:
    """A stage's last lines are in the state's message and in an artifact; a user error in the recipe is one line."""
    site.start_worker("clozeworks-gpu")
    deployment = site.deployment("pretrain", "pretrain")
    request = {**PRETRAINING, "workspace": finished[1], "overrides": [*OTHERS, "model.hidden_size=17"]}
    run = site.run(deployment, request)
    state = site.wait_until_ended(run)
    assert state["type"] == "FAILED"
    assert "hidden_size = 17 is not a multiple of num_attention_heads" in state["message"]
    # A hook stores the artifact, after the state has been set.
    failure = wait_for(lambda: site.artifacts(run).get("pretrain-failure"), "the artifact of the failure")
    assert failure["data"].startswith("    Flow run encountered an exception")
