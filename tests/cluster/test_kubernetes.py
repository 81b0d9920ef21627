"""Ranks as an indexed Job, on a real API server with its real controllers and scheduler.

The kubelet is a stand-in (`tests/support/kubernetes/kubelet.py`): containers are processes of this machine. Probes,
images, volumes, the cluster's network and its DNS are therefore not tested here. A machine that does not answer is
given up after 10 s instead of Kubernetes' 50 s.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import REPOSITORY
from tests.support.kubernetes.control_plane import ControlPlane, program, running_control_plane
from tests.support.kubernetes.kubelet import Kubelet
from tests.support.preprocessing import small_run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3_000)]  # the first one builds the control plane

NAMESPACE = "clozeworks"
INFRA = REPOSITORY / "infra" / "kubernetes"
TEMPLATE = REPOSITORY / "flows" / "kubernetes_jobs" / "training_job.yaml"
STAND_IN = "stand-in:1"
"""An image whose ranks do what a file of the test says, by number of node."""
RANKS = """
import os, signal, sys, time
node, folder = os.environ["JOB_COMPLETION_INDEX"], os.environ["STAND_IN"]
signal.signal(signal.SIGTERM, lambda *_: (print("a checkpoint is written", flush=True), sys.exit(75)))
print(f"node {node} of {os.environ['NODES']} runs {os.environ['MODULE']} {sys.argv[2:]}", flush=True)
print("credential", os.environ.get("AWS_SECRET_ACCESS_KEY"), flush=True)
while True:
    for name in (node, "all"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            code, _, line = open(path).read().partition(" ")
            if line:
                print(line, flush=True)
            sys.exit(int(code))
    time.sleep(0.1)
"""
TRAINING = (
    small_run.MODEL
    + """
[pretraining]
phases = [{ max_seq_length = 32, steps = 200, global_batch_size = 8 }]
num_warmup_steps = 5
eval_every_steps = 1000
eval_examples = 16
checkpoint_every_steps = 1000
log_every_steps = 1
"""
)


@dataclass
class Site:
    """A cluster of two machines, and what runs on it."""

    plane: ControlPlane
    kubelet: Kubelet
    volume: Path
    folder: Path
    kubeconfig: Path
    supervisors: list[Supervisor] = field(default_factory=list)

    def start(self, name: str, *settings: str, recipe: str = "flows/recipes/demo.toml") -> Supervisor:
        """Start the program of kind `kubernetes`, as a flow does."""
        ours = ("kind=kubernetes", "nodes=2", f"kubernetes.image={STAND_IN}", "kubernetes.secrets=['store']", *settings)
        words = [word for setting in ours for word in ("--set", f"pretraining.cluster.{setting}")]
        words += ["--set", "pretraining.ranks=1", "--set", f"run.workspace=/workspace/{name}"]
        self.supervisors.append(Supervisor(self, name, [recipe, *words]))
        return self.supervisors[-1]

    def get(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.plane.api.call("GET", path)["items"]
        return found

    def pods(self, job: str) -> list[dict[str, Any]]:
        return self.get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=batch.kubernetes.io/job-name={job}")

    def rest(self, job: str) -> list[str]:
        """Objects of a Job that still exist."""
        kinds = ("/apis/batch/v1", "jobs"), ("/api/v1", "services"), ("/api/v1", "configmaps"), ("/api/v1", "pods")
        found = [(kind, each) for group, kind in kinds for each in self.get(f"{group}/namespaces/{NAMESPACE}/{kind}")]
        return [
            f"{kind}/{each['metadata']['name']}" for kind, each in found if each["metadata"]["name"].startswith(job)
        ]

    def let(self, node: str, code: int, line: str = "") -> None:
        """Let the stand-in ranks of a node, or `all`, end."""
        (self.folder / node).write_text(f"{code} {line}")


class Supervisor:
    """The program as a child process, and what it said."""

    def __init__(self, site: Site, name: str, arguments: list[str]):
        self.output = site.plane.directory / f"{name}-{time.monotonic_ns()}.out"
        environment = os.environ | {"KUBECONFIG": str(site.kubeconfig), "AWS_SECRET_ACCESS_KEY": "never-a-value"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.launching.kubernetes", "training.pretrain", "1", *arguments],
                env=environment,
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, *texts: str, seconds: float = 60.0) -> None:
        wait_until(lambda: all(text in self.said() for text in texts) or self.process.poll() is not None, seconds)
        assert all(text in self.said() for text in texts), self.said()

    def job(self) -> str:
        self.wait_for(" Job ")
        name: str = self.said().partition(" Job ")[2].split()[0].strip(":")
        return name

    def code(self, seconds: float = 60.0) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(self.said())


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    if (executable := program()) is None:
        pytest.skip(
            "no control plane of Kubernetes has been built here; CLOZEWORKS_TEST_KUBERNETES=build builds it in about"
            " 40 minutes, with Go and its module proxy"
        )
    directory = tmp_path_factory.mktemp("kubernetes")
    volume, folder = directory / "volume", directory / "behaviour"
    volume.mkdir()
    folder.mkdir()
    (directory / "ranks.py").write_text(RANKS)
    train = str(REPOSITORY / "infra" / "docker" / "entrypoints" / "train.sh")
    environment = {
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": os.environ.get("HOME", "/"),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "STAND_IN": str(folder),
        "STARTED_FILE": str(directory / "started"),
    }
    images = {STAND_IN: [sys.executable, str(directory / "ranks.py")], "clozeworks/training:0.1.0": [train]}
    with running_control_plane(executable, directory) as plane:
        kubelet = Kubelet(plane.api, directory, images, {"workspace": volume}, environment)
        try:
            for machine in ("machine-1", "machine-2"):
                kubelet.add_node(machine)
            for path in ("namespace", "workspace", "network", "launching", "worker"):
                for document in yaml.safe_load_all((INFRA / f"{path}.yaml").read_text()):
                    plane.apply(document, NAMESPACE)
            plane.api.call("POST", "/api/v1/persistentvolumes", persistent_volume())
            secret = {"metadata": {"name": "store"}, "stringData": {"AWS_SECRET_ACCESS_KEY": "from the secret"}}
            plane.api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)
            # The rights of infra/kubernetes/launching.yaml, and no more.
            kubeconfig = plane.kubeconfig(plane.token_of("launcher", NAMESPACE))
            yield Site(plane, kubelet, volume, folder, kubeconfig)
        finally:
            kubelet.close()


def persistent_volume() -> dict[str, Any]:
    return {
        "metadata": {"name": "workspace"},
        "spec": {
            "capacity": {"storage": "500Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": NAMESPACE, "name": "workspace"},
        },
    }


@pytest.fixture
def site(cluster: Site) -> Iterator[Site]:
    """The cluster, without programs and Jobs of an earlier test."""
    yield cluster
    for supervisor in cluster.supervisors:
        supervisor.process.kill()
        supervisor.process.wait()
    cluster.supervisors.clear()
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs?propagationPolicy=Background"
    cluster.plane.api.call("DELETE", path)
    for behaviour in cluster.folder.iterdir():
        behaviour.unlink()
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=batch.kubernetes.io/job-name"
    wait_until(lambda: not cluster.get(path))


def test_the_api_server_accepts_the_template_and_every_manifest(site: Site) -> None:
    names = [each["metadata"]["name"] for each in site.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")]
    assert names == ["worker"]
    for document in yaml.safe_load_all(TEMPLATE.read_text()):
        site.plane.apply(document, NAMESPACE)
    job = next(each for each in yaml.safe_load_all(TEMPLATE.read_text()) if each["kind"] == "Job")
    with pytest.raises(RuntimeError, match="parallelisms"):
        site.plane.apply(job | {"spec": {**job["spec"], "parallelisms": 2}}, NAMESPACE)


def test_a_job_is_created_followed_and_complete(site: Site) -> None:
    run = site.start("complete")
    run.wait_for("node 0 of 2 runs training.pretrain", "node 1: running on")
    job = run.job()
    assert len({pod["spec"]["nodeName"] for pod in site.pods(job)}) == 2
    assert not [pod for pod in site.pods(job) if "never-a-value" in str(pod)]
    site.let("all", 0, "the last line")
    assert run.code() == 0, run.said()
    assert run.said().count("the last line") == 1
    assert "credential from the secret" in run.said()
    assert "not passed to the pods: AWS_SECRET_ACCESS_KEY" in run.said()
    assert "node 1 of 2 runs" not in run.said()


def test_cancelling_ends_every_rank_and_removes_every_object(site: Site) -> None:
    run = site.start("cancelled")
    run.wait_for("node 0 of 2 runs", "node 1: running on")
    job, before = run.job(), time.monotonic()
    containers = [site.kubelet.containers[pod["metadata"]["uid"]] for pod in site.pods(job)]
    run.process.send_signal(signal.SIGTERM)
    assert run.code() == 143, run.said()
    assert time.monotonic() - before < 20.0
    assert [container.process.returncode for container in containers] == [75, 75]
    assert "a checkpoint is written" in run.said()
    wait_until(lambda: not site.rest(job))
    assert site.rest(job) == []


def test_a_retried_flow_adopts_the_job_that_still_runs(site: Site) -> None:
    first = site.start("adopted")
    first.wait_for("node 0 of 2 runs", "node 1: running on")
    pods = {pod["metadata"]["uid"] for pod in site.pods(first.job())}
    first.process.kill()
    second = site.start("adopted")
    second.wait_for("adopted Job", "node 0 of 2 runs")
    site.let("all", 0)
    assert second.code() == 0, second.said()
    assert {pod["metadata"]["uid"] for pod in site.pods(second.job())} == pods


def test_a_job_without_its_flow_stops_after_a_checkpoint(site: Site) -> None:
    run = site.start("lost", "kubernetes.lease_seconds=30")
    run.wait_for("node 0 of 2 runs", "node 1: running on")
    containers = [site.kubelet.containers[pod["metadata"]["uid"]] for pod in site.pods(run.job())]
    time.sleep(35.0)
    assert all(container.process.poll() is None for container in containers), (
        "the deadline is renewed while it is followed"
    )
    run.process.kill()
    wait_until(lambda: all(container.process.poll() is not None for container in containers), 60.0)
    assert [container.process.poll() for container in containers] == [75, 75]


def test_a_user_error_of_any_node_ends_the_job_with_its_line(site: Site) -> None:
    run = site.start("refused")
    run.wait_for("node 0 of 2 runs", "node 1: running on")
    site.let("1", 2, "error: recipe.toml: model.hidden_size = 7: no")
    assert run.code() == 2, run.said()
    assert "\nerror: recipe.toml: model.hidden_size = 7: no\n" in run.said()
    assert "PodFailurePolicy" in run.said()


def test_a_pod_that_stops_after_a_checkpoint_is_replaced_and_counts_as_no_failure(site: Site) -> None:
    run = site.start("requeued")
    run.wait_for("node 0 of 2 runs", "node 1: running on")
    site.let("1", 75)
    run.wait_for("node 1: stopped by a signal after a checkpoint (exit code 75)")
    (site.folder / "1").unlink()
    wait_until(lambda: run.said().count("node 1: running on") == 2)
    job = site.plane.api.call("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{run.job()}")
    assert not job["status"].get("failedIndexes")
    site.let("all", 0)
    assert run.code() == 0, run.said()


def test_what_pods_wait_for_is_said_in_words(site: Site) -> None:
    image = site.start("image", "kubernetes.image=nowhere/image:1")
    image.wait_for("its image nowhere/image:1 cannot be pulled (ImagePullBackOff: ")
    large = site.start("large", "nodes=3")
    large.wait_for("waiting for a machine: 0/2 nodes are available: ")


def test_other_settings_do_not_replace_the_job_of_a_flow_that_is_there(site: Site) -> None:
    first = site.start("taken", "kubernetes.lease_seconds=30")
    first.wait_for("node 0 of 2 runs")
    second = site.start("taken", "kubernetes.lease_seconds=30", "environment=['OTHER']", "kubernetes.gpu_resource=none")
    assert second.code() == 2, second.said()
    assert "another flow" in second.said()
    first.process.kill()
    third = site.start("taken", "kubernetes.lease_seconds=30", "kubernetes.gpu_resource=none")
    third.wait_for("its flow is gone", "created Job", "node 0 of 2 runs")


def test_two_pods_train_and_resume_when_one_is_drained(site: Site, tmp_path: Path) -> None:
    small_run.write_corpus(tmp_path / "corpus", num_documents=20)
    recipe = tmp_path / "recipe.toml"
    text = small_run.RECIPE.format(workspace=site.volume / "trained", corpus=tmp_path / "corpus") + TRAINING
    recipe.write_text(text)
    small_run.run_all(str(recipe))
    run = site.start("trained", "kubernetes.image=clozeworks/training:0.1.0", recipe=str(recipe))
    run.wait_for("pretraining: step 3/200", seconds=240.0)
    victim = next(pod for pod in site.pods(run.job()) if pod["metadata"]["name"].rpartition("-")[0].endswith("-1"))
    name = victim["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
    site.plane.api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction", eviction)
    assert run.code(300.0) == 0, run.said()
    assert "resumed from checkpoint" in run.said()
    assert (site.volume / "trained" / "pretraining" / "manifest.json").exists()


def test_a_machine_that_is_gone_is_said_within_a_minute(site: Site) -> None:
    """The last test: the machine does not come back."""
    run = site.start("gone")
    run.wait_for("node 0 of 2 runs", "node 1: running on")
    victim = next(pod for pod in site.pods(run.job()) if pod["metadata"]["name"].rpartition("-")[0].endswith("-1"))
    site.kubelet.power_off(victim["spec"]["nodeName"])
    run.wait_for(f"node 1: not ready: its machine {victim['spec']['nodeName']} may not answer", seconds=60.0)
