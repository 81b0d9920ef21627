"""One recipe, one deployment, one run: a schedule starts it, four pools build its parts, the registry gets a champion.

Postgres, MLflow's and Prefect's servers on it, and an S3 server that has the workspace. Four workers, each with a disk
that no other one sees: preprocessing goes to a Spark cluster, pre-training to two hosts over ssh, trials to a pool of
their own. Afterwards all artifacts are read through the servers, without credentials of the store, and every stage is
compared with a run of the same recipe on one machine. Where Spark or the hosts cannot be had, the run does without, and
the test of that part is skipped with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import fs
from tests.support import REPOSITORY
from tests.support.cluster import own_disk
from tests.support.cluster.drawn_run import (
    CPU,
    FLOWS,
    GPU,
    NAME,
    TRIALS,
    Parts,
    filesystem_of,
    laptop_recipe,
    parts_of_a_run,
)
from tests.support.flows.servers_on_postgres import PATIENCE_SECONDS, Servers, missing
from tests.support.object_store.s3_server import S3Server

from pipelines.contract.manifest import read_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE_SECONDS)]

STAGES = ("documents", "vocabulary", "examples", "pretraining")


@dataclass(frozen=True)
class Drawn:
    """A completed run: its parts, and the runs on the server, the one that was scheduled first."""

    parts: Parts
    runs: list[dict[str, Any]]

    def run_named(self, label: str) -> dict[str, Any]:
        (found,) = [each for each in self.runs if each["name"].endswith(f": {label}")]
        return found


@pytest.fixture(scope="module")
def drawn(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawn]:
    if lacks := ", ".join(filter(None, [missing(), own_disk.missing()])):
        pytest.skip(f"the servers need {lacks}; Debian's packages postgresql and util-linux have them")
    with parts_of_a_run(tmp_path_factory.mktemp("drawn"), s3_server) as parts:
        servers = parts.servers
        run = started_by_schedule(servers, {"recipe": parts.recipe})
        state = ended(servers, run)
        assert state["type"] == "COMPLETED", f"{state['message']}\n{servers.logs()}"
        yield Drawn(parts, [each for each in family(servers, run) if each["deployment_id"]])


@pytest.fixture(scope="module")
def on_one_machine(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a run on one machine, with trials one after another."""
    folder = tmp_path_factory.mktemp("laptop")
    servers = ("MLFLOW_", "PREFECT_", "AWS_")
    own = {
        name: value for name, value in drawn.parts.servers.worker_environment.items() if not name.startswith(servers)
    }
    command = [sys.executable, "-m", "flows.end_to_end", laptop_recipe(folder)]
    own["XDG_CACHE_HOME"] = str(folder / "cache")
    done = subprocess.run(command, env=own, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "workspace"


def test_a_schedule_starts_a_run_over_all_pools_that_ends_with_a_champion(drawn: Drawn) -> None:
    where = {each["name"].rpartition(": ")[2]: each["work_pool_name"] for each in drawn.runs}
    sweep = sorted(name for name in where if name.startswith("kind/sweep/"))
    assert len(sweep) == 2
    assert where == {
        drawn.runs[0]["name"]: FLOWS,
        "preprocess": CPU,
        "pretrain": GPU,
        **dict.fromkeys(["kind/pretrained", *sweep], TRIALS),
    }
    body = {"artifacts": {"key": {"any_": [f"{NAME}-report"]}}}
    artifacts = drawn.parts.servers.call("POST", "/artifacts/filter", body)
    assert f"models:/{NAME}-kind@champion" in artifacts[0]["data"]
    assert "skipped (took" not in artifacts[0]["data"], "its parts were built by this run"


def test_preprocessing_ran_on_spark(drawn: Drawn) -> None:
    spark = drawn.parts.spark
    if spark is None:
        pytest.skip(f"the run used the local runner, for there is no Spark: {drawn.parts.missing['Spark']}")
    page = spark.page()
    assert not page["activeapps"]
    assert [app["name"] for app in page["completedapps"]] == [f"clozeworks-{name}" for name in STAGES[:3]]
    assert "submitting to Spark at" in log_of(drawn, "preprocess")


def test_pretraining_ran_on_two_hosts_that_staged_their_own_data(drawn: Drawn) -> None:
    if drawn.parts.hosts is None:
        reason = drawn.parts.missing["two ssh hosts"]
        pytest.skip(f"the run used two ranks on one machine, for there are no two ssh hosts: {reason}")
    assert "cluster: 2 ranks on 10.213.7.1 (1), 10.213.7.2 (1)" in log_of(drawn, "pretrain")
    for name in (GPU, "b"):
        staged = [path for path in drawn.parts.disks[name].files() if path.startswith("staging/files/")]
        assert staged, f"{name} has staged nothing"


def test_no_machine_sees_the_disk_of_another(drawn: Drawn) -> None:
    for name, disk in drawn.parts.disks.items():
        for path, seen in ((disk.place, sorted(os.listdir(disk.directory))), (disk.directory.parent, [])):
            command = disk.command(["ls", str(path)])
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            assert sorted(listed) == seen, name


def test_every_artifact_is_read_through_the_servers(drawn: Drawn, tmp_path: Path) -> None:
    seen = seen_through_mlflow(drawn.parts.servers, tmp_path)
    assert seen["predicted"] == ["array", "string"]
    assert seen["report"] == "<!doctype html>"
    assert seen["files"] > 10
    assert seen["empty"] == []


def test_every_stage_has_the_bytes_of_a_run_on_one_machine(drawn: Drawn, on_one_machine: Path, tmp_path: Path) -> None:
    sweep = [each["name"].rpartition(": ")[2] for each in drawn.runs if "kind/sweep/" in each["name"]]
    trials = [f"finetuning/{name}" for name in ("kind/pretrained", *sweep)]
    source = drawn.parts.workspace.removeprefix("s3://")
    fs.copy_files(source, str(tmp_path), source_filesystem=filesystem_of(drawn.parts.store))
    for stage in (*STAGES, *trials):
        assert sums_of(tmp_path / stage) == sums_of(on_one_machine / stage), stage


def test_servers_recover_when_their_database_returns(drawn: Drawn) -> None:
    servers = drawn.parts.servers
    version = f"{servers.mlflow_uri}/api/2.0/mlflow/registered-models/alias?name={NAME}-kind&alias=champion"

    def answers() -> list[bool]:
        run = f"{servers.prefect_api}/flow_runs/{drawn.runs[0]['id']}"
        return [httpx.get(address, timeout=120.0).is_success for address in (run, version)]

    assert answers() == [True, True]
    with servers.without_postgres():
        assert answers() == [False, False]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while answers() != [True, True]:
        assert time.monotonic() < deadline, servers.logs()
        time.sleep(1)


def sums_of(directory: Path) -> dict[str, str]:
    """Digests of a stage's files, without that of the metrics, which have times."""
    manifest = read_manifest(str(directory))
    assert manifest is not None, directory
    return {file.name: file.sha256 for file in manifest.files if not file.name.endswith("metrics.jsonl")}


def log_of(drawn: Drawn, label: str) -> str:
    """All lines that a run has logged on Prefect's server."""
    lines: list[str] = []
    runs = {"flow_run_id": {"any_": [each["id"] for each in family(drawn.parts.servers, drawn.run_named(label)["id"])]}}
    while page := drawn.parts.servers.call(
        "POST", "/logs/filter", {"logs": runs, "limit": 200, "offset": len(lines), "sort": "TIMESTAMP_ASC"}
    ):
        lines += [each["message"] for each in page]
    return "\n".join(lines)


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
import json, os, sys
import mlflow
from mlflow import MlflowClient

def files_below(run, path=None):
    for each in client.list_artifacts(run, path):
        yield from files_below(run, each.path) if each.is_dir else [each.path]

client = MlflowClient()
model = mlflow.pyfunc.load_model("models:/drawn-kind@champion")
found = model.predict(["the array of this", "this is a string"])
(experiment,) = [each for each in client.search_experiments() if each.name == "clozeworks"]
runs = client.search_runs([experiment.experiment_id])
copies = {}
for run in runs:
    folder = os.path.join(sys.argv[1], run.info.run_id)
    os.mkdir(folder)
    for path in files_below(run.info.run_id):
        copies[run.info.run_id, path] = client.download_artifacts(run.info.run_id, path, folder)
parents = client.search_runs([experiment.experiment_id], "tags.`clozeworks.flow` = 'end-to-end'")
report = copies[parents[0].info.run_id, "report/report.html"]
json.dump(
    {
        "predicted": [str(label) for label in found["label"]],
        "report": open(report).read(15),
        "files": len(copies),
        "empty": [path for (_, path), copy in copies.items() if not os.path.getsize(copy)],
    },
    sys.stdout,
)
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
