"""One recipe, one deployment, one run: a schedule starts it, four pools build its parts, the registry gets a champion.

Postgres, MLflow's server on it with artifacts in an S3 store, Prefect's server on it, four workers with homes and
caches of their own, which share the workspace's directory. Afterwards the champion and the report are read through the
servers, without credentials of the store, and trials are compared with those trained one after the other.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import REPOSITORY
from tests.support.flows.servers_on_postgres import PATIENCE_SECONDS, Servers, missing, servers_on_postgres
from tests.support.object_store.s3_server import S3Server, running_server

from pipelines.contract.manifest import read_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_SECONDS)]

POOLS = ("clozeworks-flows", "clozeworks-cpu", "clozeworks-gpu", "clozeworks-trials")
RECIPE = """
[run]
name = "drawn"
workspace = "{workspace}"
workers = 1
[documents]
sources = [{{ format = "python-docstrings", inputs = ["rich", "numpy"] }}]
num_shards = 2
[vocabulary]
size = 1000
[examples]
lengths = [{{ max_seq_length = 32, max_predictions_per_seq = 5 }}]
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32
[pretraining]
phases = [{{ max_seq_length = 32, steps = 20, global_batch_size = 8 }}]
num_warmup_steps = 5
eval_examples = 16
ranks = 2
[finetuning]
max_seq_length = 32
batch_size = 8
learning_rate = 5e-3
num_train_epochs = 6
tables = [{{ name = "kind", train_file = "{table}", dev_share = 0.3 }}]
sweep = {{ grid = "none", seeds = 2 }}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def servers(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if lacks := missing():
        pytest.skip(f"the servers need {lacks}; Debian's packages postgresql and util-linux have them")
    environment = {**store.environment, "CLOZEWORKS_TEST_BUCKET": store.bucket}
    with servers_on_postgres(tmp_path_factory.mktemp("servers"), environment) as running:
        yield running


def write_recipe(folder: Path, workspace: str) -> str:
    """A recipe whose task can be learnt: one word decides the label."""
    draw = random.Random(1)
    with open(folder / "kind.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        for _ in range(300):
            label = draw.choice(["array", "string"])
            words = [*draw.choices(["the", "a", "of", "this", "is", "with", "for"], k=6), label]
            draw.shuffle(words)
            rows.writerow([" ".join(words), label])
    path = folder / "drawn.toml"
    path.write_text(RECIPE.format(workspace=workspace, table=folder / "kind.csv"))
    return str(path)


def test_a_schedule_starts_a_run_over_all_pools_that_ends_with_a_champion(servers: Servers, tmp_path: Path) -> None:
    workspace = str(tmp_path / "shared")
    recipe = write_recipe(tmp_path, workspace)
    said = servers.deploy()
    assert "deployment  end-to-end/end-to-end-cluster created" in said
    for pool in POOLS:
        servers.start_worker(pool)
    run = started_by_schedule(servers, {"recipe": recipe})
    state = ended(servers, run)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{servers.logs()}"

    runs = [each for each in family(servers, run) if each["deployment_id"]]
    where = {each["name"].rpartition(": ")[2]: each["work_pool_name"] for each in runs}
    sweep = sorted(name for name in where if name.startswith("kind/sweep/"))
    assert len(sweep) == 2
    assert where == {
        runs[0]["name"]: "clozeworks-flows",
        "preprocess": "clozeworks-cpu",
        "pretrain": "clozeworks-gpu",
        **dict.fromkeys(["kind/pretrained", *sweep], "clozeworks-trials"),
    }
    artifacts = servers.call("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["drawn-report"]}}})
    assert "models:/drawn-kind@champion" in artifacts[0]["data"]
    assert "skipped (took" not in artifacts[0]["data"], "its parts were built by this run"
    seen = seen_through_mlflow(servers, tmp_path)
    assert seen["predicted"] == ["array", "string"]
    assert seen["report"] == "<!doctype html>"

    # The same trials one after the other, in one process each for the recipe's own and for the sweep's.
    alone = tmp_path / "alone"
    for stage in ("vocabulary", "pretraining"):
        shutil.copytree(f"{workspace}/{stage}", alone / stage)
    own = {name: value for name, value in servers.worker_environment.items() if not name.startswith("MLFLOW_")}
    for module in ("training.finetune", "training.sweep"):
        command = [sys.executable, "-m", module, recipe, "--workspace", str(alone)]
        done = subprocess.run(command, env=own, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for trial in (f"finetuning/{name}" for name in ("kind/pretrained", *sweep)):
        assert sums_of(f"{workspace}/{trial}") == sums_of(f"{alone}/{trial}"), trial


def sums_of(directory: str) -> dict[str, str]:
    """Digests of a stage's files, without that of the metrics, which have times."""
    manifest = read_manifest(directory)
    assert manifest is not None, directory
    return {file.name: file.sha256 for file in manifest.files if not file.name.endswith("metrics.jsonl")}


def started_by_schedule(servers: Servers, request: dict[str, Any]) -> str:
    """Set the recipe and a schedule as on the page; the run that the schedule then starts."""
    found = servers.call("GET", "/deployments/name/end-to-end/end-to-end-cluster")
    parameters = {"request": {**found["parameters"]["request"], **request}}
    servers.call("PATCH", f"/deployments/{found['id']}", {"parameters": parameters})
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    schedule = {"interval": timedelta(days=1).total_seconds(), "anchor_date": soon, "timezone": "UTC"}
    servers.call("POST", f"/deployments/{found['id']}/schedules", [{"schedule": schedule, "active": True}])
    body = {
        "deployments": {"id": {"any_": [found["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (runs := servers.call("POST", "/flow_runs/filter", body)):
        assert time.monotonic() < deadline, servers.logs()
        time.sleep(2)
    assert runs[0]["auto_scheduled"]
    return str(runs[0]["id"])


def ended(servers: Servers, run: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        state: dict[str, Any] = servers.call("GET", f"/flow_runs/{run}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        assert time.monotonic() < deadline, servers.logs()
        time.sleep(3)


def family(servers: Servers, run: str) -> list[dict[str, Any]]:
    found, level = [servers.call("GET", f"/flow_runs/{run}")], [run]
    while level:
        within = servers.call("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": level}}})
        found, level = [*found, *within], [each["id"] for each in within]
    return found


LOOK = """
import json, sys
import mlflow
from mlflow import MlflowClient

client = MlflowClient()
version = client.get_model_version_by_alias("drawn-kind", "champion")
model = mlflow.pyfunc.load_model("models:/drawn-kind@champion")
found = model.predict(["the array of this", "this is a string"])
(experiment,) = [each for each in client.search_experiments() if each.name == "clozeworks"]
parents = client.search_runs([experiment.experiment_id], "tags.`clozeworks.flow` = 'end-to-end'")
path = client.download_artifacts(parents[0].info.run_id, "report/report.html", sys.argv[1])
predicted = [str(label) for label in found["label"]]
json.dump({"predicted": predicted, "report": open(path).read(15)}, sys.stdout)
"""


def seen_through_mlflow(servers: Servers, folder: Path) -> dict[str, Any]:
    """What a consumer sees that knows the address of MLflow's server and nothing else."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder)],
        env={**inherited, "MLFLOW_TRACKING_URI": servers.mlflow_uri},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen
