"""The three jobs on a real Flink: the local runner's bytes from a flow, and from Beam's own protocol (`portable`).

A standalone cluster of two task managers and Beam's job server, from Maven Central, started by `infra/flink`; Python
workers as processes of their own. `make test-spark` runs this.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.spark.flink import FlinkCluster
from tests.support.spark.jobs import JOBS, command, files_below

from pipelines.runners.maven import JavaUnavailableError

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1800)]

# Workers persist from job to job, which saves their start; the default is none.
SECTION = """
[preprocessing]
runner = "{runner}"
job_endpoint = "{endpoint}"
options = {{ flink_master = "{master}", parallelism = 2, environment_cache_millis = 600000 }}
[pretraining]
phases = [{{ max_seq_length = 64, steps = 20000, global_batch_size = 8 }}]
"""


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    try:
        cluster = FlinkCluster(tmp_path_factory.mktemp("flink"))
    except JavaUnavailableError as reason:
        pytest.skip(str(reason))
    with cluster:
        yield cluster


def recipe_for(flink: FlinkCluster, runner: str, recipe: Path, directory: Path) -> Path:
    """A copy of a recipe that names the cluster."""
    own = directory / f"{runner}.toml"
    section = SECTION.format(runner=runner, endpoint=flink.job_endpoint, master=flink.master)
    own.write_text(recipe.read_text() + section)
    return own


def flow(flink: FlinkCluster, recipe: Path, workspace: Path) -> subprocess.Popen[str]:
    """The flow of the three stages, with a real Prefect server, in the cluster's network."""
    own = recipe_for(flink, "flink", recipe, workspace.parent)
    return subprocess.Popen(
        flink.command(sys.executable, "-m", "flows.preprocess", str(own), f"--workspace={workspace}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )


def test_a_flow_whose_recipe_names_flink_gives_the_local_bytes(
    flink: FlinkCluster, small_recipe: Path, small_local: Path, tmp_path: Path
) -> None:
    before = flink.jobs()
    running = flow(flink, small_recipe, tmp_path / "w")
    said, _ = running.communicate()
    assert running.returncode == 0, said + flink.log_text()[-4000:]
    expected = files_below(small_local)
    assert {path.split("/")[0] for path in expected} == set(JOBS.values())
    assert files_below(tmp_path / "w") == expected
    assert "of 5 shards after" in said, "progress is counted while the cluster works"
    ran = {name: state for name, state in flink.jobs().items() if name not in before}
    assert {name.split("-")[1] for name in ran} == set(JOBS.values())
    assert set(ran.values()) == {"FINISHED"}


def test_the_runner_portable_gives_the_local_bytes_with_every_feature_of_the_recipe(
    flink: FlinkCluster, mixed_recipe: Path, mixed_local: Path, tmp_path: Path
) -> None:
    own = recipe_for(flink, "portable", mixed_recipe, tmp_path)
    before = flink.jobs()
    for job in JOBS:
        subprocess.run(flink.command(*command(job, own, f"--workspace={tmp_path}/w")), check=True)
    assert files_below(tmp_path / "w") == files_below(mixed_local)
    assert [state for name, state in flink.jobs().items() if name not in before] == ["FINISHED"] * len(JOBS)


def test_cancelling_a_flow_leaves_no_job_and_no_worker_on_the_cluster(
    flink: FlinkCluster, recipe: Path, tmp_path: Path
) -> None:
    before = flink.jobs()
    running = flow(flink, recipe, tmp_path / "w")
    try:
        while not (ours := {name for name, state in flink.jobs().items() if state == "RUNNING"}):
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait()
    assert running.returncode != 0
    after = {name: state for name, state in flink.jobs().items() if name not in before}
    assert after == dict.fromkeys(ours, "CANCELED"), said
    listing = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}" not in listing, "a process of the run is left"


def test_a_job_server_without_its_cluster_is_one_line(flink: FlinkCluster, small_recipe: Path, tmp_path: Path) -> None:
    own = recipe_for(flink, "flink", small_recipe, tmp_path)
    away = ["--set", 'preprocessing.options.flink_master="127.0.0.1:1"', f"--workspace={tmp_path}/w"]
    result = subprocess.run(
        flink.command(*command("shard_corpus", own, *away)), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "127.0.0.1:1" in errors[0]
    assert "Traceback" not in result.stderr
