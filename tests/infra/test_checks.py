"""The checker passes the files of infra/, and finds each fault that is inserted into a copy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY

JOB = "flows/kubernetes_jobs/training_job.yaml"
IMAGE = "infra/docker/training.Dockerfile"
COMPOSE = "infra/compose.yaml"
SCRIPT = "infra/docker/entrypoints/worker.sh"
LISTING = "infra/kubernetes/kustomization.yaml"
FLINK = "infra/flink/flink-conf.yaml"


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "infra" / "check_infra.py"), "--root", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with one file of each kind, to be damaged and restored."""
    root = tmp_path_factory.mktemp("checkout")
    names = (IMAGE, JOB, COMPOSE, SCRIPT, LISTING, FLINK, "infra/kubernetes/worker.yaml")
    for name in names:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    listing = root / LISTING
    listing.write_text(re.sub(r"  - (?!worker).*\n", "", listing.read_text()))
    return root


@pytest.mark.slow
def test_everything_in_infra_passes() -> None:
    result = check(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr
    checked = {line.split(":")[0] for line in result.stdout.splitlines()}
    there = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "infra").rglob("*.sh")}
    there |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "infra").rglob("*Dockerfile")}
    there |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "infra").rglob("*.yaml")}
    assert there <= checked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        pytest.param(SCRIPT, '"$@"', "$@", "SC2068", id="unquoted"),
        pytest.param(IMAGE, "--yes ", "", "DL3014", id="apt-asks"),
        pytest.param(IMAGE, "USER 10001:10001", "USER root", "USER root", id="root"),
        pytest.param(IMAGE, "python:3.11-slim-bookworm", "python:latest", "name a version", id="latest"),
        pytest.param(IMAGE, "DO_NOT_TRACK=1", "HF_TOKEN=abc", "HF_TOKEN", id="secret-in-image"),
        pytest.param(IMAGE, "--require-hashes /tmp", "/tmp", "add --require-hashes", id="no-hashes"),
        pytest.param(COMPOSE, "depends_on:", "depend_on:", "depend_on", id="unknown-key"),
        pytest.param(COMPOSE, '"127.0.0.1:5000:5000"', '"5000:5000"', "127.0.0.1", id="open-port"),
        pytest.param(COMPOSE, '"127.0.0.1:5000:5000"', '"0.0.0.0:5000:5000"', "127.0.0.1", id="any-address"),
        pytest.param(COMPOSE, "${POSTGRES_PASSWORD:?}", "${POSTGRES_PASSWORD:-pg}", "PGPASSWORD", id="default"),
        pytest.param(COMPOSE, "clozeworks@postgres", "clozeworks:pg@postgres", "password in it", id="in-url"),
        pytest.param(COMPOSE, "    ports:\n", "    ports: []\n    ports:\n", "occurs twice", id="twice"),
        pytest.param(JOB, "parallelism: 2", "parallelisms: 2", "parallelisms", id="unknown-field"),
        pytest.param(JOB, "parallelism: 2", 'parallelism: "2"', "parallelism", id="wrong-type"),
        pytest.param(JOB, "parallelism: 2", "parallelism: 1", "make them equal", id="sizes"),
        pytest.param(JOB, "nvidia.com/gpu: 8", "nvidia.com/gpu: 4", "PROCESSES_PER_NODE", id="gpus"),
        pytest.param(JOB, "values: [75]", "values: [76]", "exit code 75", id="no-requeue"),
        pytest.param(JOB, "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot", id="pod-as-root"),
        pytest.param(JOB, "training:0.1.0", "training", "name a version", id="no-tag"),
        pytest.param(
            JOB,
            "valueFrom: {secretKeyRef: {name: mlflow, key: password, optional: true}}",
            "value: abc",
            "MLFLOW_TRACKING_PASSWORD",
            id="literal-secret",
        ),
        pytest.param(FLINK, "rest.bind-address: 127.0.0.1", "rest.bind-address: 0.0.0.0", "rest.bind", id="flink-open"),
        pytest.param(FLINK, "network.max: 128m", "network.max: 256m", "memory.network", id="flink-size"),
        pytest.param(LISTING, "worker.yaml", "other.yaml", "not in both", id="not-listed"),
    ],
)
def test_a_fault_is_found(one_of_each: Path, name: str, old: str, new: str, told: str) -> None:
    path = one_of_each / name
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))
    try:
        result = check(one_of_each)
    finally:
        path.write_text(whole)
    assert result.returncode == 1, result.stdout + result.stderr
    faulty = [line for line in result.stdout.splitlines() if not line.startswith(" ") and not line.endswith(": ok")]
    assert [line.split(":")[0] for line in faulty] == [name]
    assert told in result.stdout


def test_the_requeued_exit_code_is_the_one_that_training_ends_with() -> None:
    source = (REPOSITORY / "pipelines" / "contract" / "errors.py").read_text()
    entry_point = (REPOSITORY / "infra" / "docker" / "entrypoints" / "train.sh").read_text()
    assert re.findall(r"^EXIT_REQUEUE = (\d+)$", source, re.M) == ["75"]
    assert re.findall(r"^interrupted=(\d+)", entry_point, re.M) == ["75"]
