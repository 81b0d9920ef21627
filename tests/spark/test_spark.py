"""The three jobs on a real Spark: the local runner's bytes, also where workers are killed in the middle.

Java side from Maven Central, two executors, Python workers as processes of their own, on Beam's job server and on a
standalone cluster. `make test-spark` runs this.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.spark.job_server import SparkJobServer
from tests.support.spark.jobs import JOBS, files_below
from tests.support.spark.standalone import StandaloneSpark

from pipelines.runners.maven import JavaUnavailableError

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1200)]

NO_WORKER_CACHE = "--environment_cache_millis=0"


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkJobServer]:
    try:
        server = SparkJobServer(tmp_path_factory.mktemp("server") / "job_server.log", workers=2)
    except JavaUnavailableError as reason:
        pytest.skip(str(reason))
    with server:
        yield server


def workers_of(spark: SparkJobServer) -> list[int]:
    """Process ids of the Python workers that the executors have started and not yet stopped."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    return [int(pid) for pid, session, arguments in rows if session == str(spark.session) and is_worker(arguments)]


def is_worker(arguments: str) -> bool:
    return "clozeworks-worker" in arguments and "--provision_endpoint" in arguments


def test_every_file_is_the_local_runners(spark: SparkJobServer, recipe: Path, local: Path, tmp_path: Path) -> None:
    for job in JOBS:
        subprocess.run(spark.command(job, recipe, f"--workspace={tmp_path}"), check=True)
    expected = files_below(local)
    assert {path.split("/")[0] for path in expected} == set(JOBS.values())
    assert files_below(tmp_path) == expected
    assert "Lost task" not in spark.log.read_text()


def test_every_feature_of_the_recipe_gives_the_local_bytes(
    spark: SparkJobServer, mixed_recipe: Path, mixed_local: Path, tmp_path: Path
) -> None:
    for job in JOBS:
        subprocess.run(spark.command(job, mixed_recipe, f"--workspace={tmp_path}"), check=True)
    assert files_below(tmp_path) == files_below(mixed_local)


@pytest.mark.parametrize("job", JOBS)
def test_killed_workers_change_nothing(
    job: str, spark: SparkJobServer, recipe: Path, local: Path, tmp_path: Path
) -> None:
    stage = JOBS[job]
    for before in list(JOBS.values())[: list(JOBS).index(job)]:
        shutil.copytree(local / before, tmp_path / before)
    lost_before = spark.log.read_text().count("Lost task")
    # A worker that is kept for the next stage is kept dead as well, so a cluster's setting is no cache.
    process = subprocess.Popen(spark.command(job, recipe, f"--workspace={tmp_path}", NO_WORKER_CACHE))
    try:
        killed = kill_at_work(spark, process, tmp_path / f"{stage}.building")
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    assert killed, "the job ended before a worker could be killed"
    assert spark.log.read_text().count("Lost task") > lost_before
    assert {name: data for name, data in files_below(tmp_path).items() if name.startswith(f"{stage}/")} == {
        name: data for name, data in files_below(local).items() if name.startswith(f"{stage}/")
    }


def kill_at_work(spark: SparkJobServer, process: subprocess.Popen[bytes], directory: Path) -> list[int]:
    """Kill all Python workers once they have written something; where none writes but the last, one that is new."""
    writes = directory.name != f"{JOBS['train_vocabulary']}.building"
    while process.poll() is None:
        workers = workers_of(spark)
        at_work = any(path.suffix in (".arrow", ".tmp") for path in directory.rglob("*")) if writes else bool(workers)
        if workers and at_work:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            return workers
        time.sleep(0.05)
    return []


CLUSTER = """
[preprocessing]
runner = "spark"
options = {{ environment_cache_millis = 60000 }}
[preprocessing.spark]
master = "{master}"
[pretraining]
phases = [{{ max_seq_length = 64, steps = 20000, global_batch_size = 8 }}]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneSpark]:
    try:
        standalone = StandaloneSpark(tmp_path_factory.mktemp("cluster"))
    except JavaUnavailableError as reason:
        pytest.skip(str(reason))
    with standalone:
        yield standalone


def flow(cluster: StandaloneSpark, recipe: Path, workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    """The flow of the three stages, with a real Prefect server, in the network of a cluster that the recipe names."""
    own = workspace.parent / "cluster.toml"
    own.write_text(recipe.read_text() + CLUSTER.format(master=cluster.master))
    command = [sys.executable, "-m", "flows.preprocess", str(own), f"--workspace={workspace}", *arguments]
    return subprocess.Popen(
        cluster.command(*command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **cluster.environment},
    )


def test_a_flow_whose_recipe_names_a_cluster_gives_the_local_bytes(
    cluster: StandaloneSpark, recipe: Path, local: Path, tmp_path: Path
) -> None:
    running = flow(cluster, recipe, tmp_path / "w")
    said, _ = running.communicate()
    assert running.returncode == 0, said
    expected = files_below(local)
    assert files_below(tmp_path / "w") == expected
    for stage in JOBS.values():
        assert f"{stage}: submitting to Spark at {cluster.master}" in said
    assert said.count("Connected to Spark cluster with app ID") == len(JOBS), "the driver's log is in the flow's"
    assert "of 5 shards after" in said, "progress is counted while the cluster works"
    page = cluster.page()
    assert not page["activeapps"]
    assert {app["name"] for app in page["completedapps"]} == {f"clozeworks-{stage}" for stage in JOBS.values()}


def test_cancelling_a_flow_leaves_no_application_on_the_cluster(
    cluster: StandaloneSpark, recipe: Path, tmp_path: Path
) -> None:
    before = {app["id"] for app in cluster.page()["completedapps"]}
    running = flow(cluster, recipe, tmp_path / "w")
    try:
        while not (active := cluster.page()["activeapps"]):
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        running.communicate(timeout=90)
        while cluster.page()["activeapps"] and time.monotonic() < begin + 90:
            time.sleep(0.2)
        seconds = time.monotonic() - begin
    finally:
        running.kill()
        running.wait()
    page = cluster.page()
    assert not page["activeapps"], f"an application is left after {seconds:.0f} s"
    assert active[0]["id"] in {app["id"] for app in page["completedapps"]} - before
    assert running.returncode != 0
    listing = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}" not in listing, "a process of the run is left"
