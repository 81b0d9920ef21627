"""The program of kind `kubernetes`: what it refuses, and what it gives up, with a cluster that only records calls."""

from __future__ import annotations

import queue
from dataclasses import replace
from typing import Any

import pytest

from flows.kubernetes_jobs.api import Change
from flows.kubernetes_jobs.manifest import JobRequest, objects_of
from flows.launching import kubernetes
from flows.launching.job import Job
from flows.launching.kubernetes import Supervisor
from flows.launching.launchers import launcher_of
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from training.settings.cluster import KubernetesConfig

REQUEST = JobRequest("training.pretrain", "", (), "run", "s3://bucket/run", None, 2, 8, KubernetesConfig())


class Recorder:
    """A cluster that knows one Job and answers watches with what a test gave it."""

    namespace = "clozeworks"

    def __init__(self, *changes: Change):
        self.changes, self.deleted, self.flow = changes, 0, ""
        self.seconds: list[int] = []

    def job(self, _name: str) -> tuple[dict[str, Any], float] | None:
        return ({"metadata": {"annotations": {"clozeworks/flow": self.flow}}}, 100.0) if self.flow else None

    def create(self, _objects: Any, flow: str) -> None:
        self.flow = flow

    def change(self, _name: str, patch: dict[str, Any]) -> None:
        self.seconds.append(patch["spec"]["activeDeadlineSeconds"])

    def follow(self, _name: str, changes: queue.SimpleQueue[Change], _stop: Any) -> None:
        for change in self.changes:
            changes.put(change)

    def delete(self, _name: str, _grace_seconds: int | None = None) -> str | None:
        self.deleted += 1
        return None


def supervisor(cluster: Recorder, request: JobRequest = REQUEST) -> Supervisor:
    return Supervisor(cluster, objects_of(request, {}), request, [])  # type: ignore[arg-type]


def pod(state: dict[str, Any]) -> dict[str, Any]:
    metadata = {"uid": "1", "name": "p", "creationTimestamp": "2026", "annotations": {}}
    container = {"name": "training", "image": "im:1"}
    return {
        "metadata": metadata,
        "spec": {"containers": [container]},
        "status": {"containerStatuses": [{"name": "training", "state": state}]},
    }


def test_the_row_of_the_table_starts_this_program() -> None:
    settings = ["pretraining.cluster.kind=kubernetes", "pretraining.ranks=8"]
    whole = WholeRecipe.check(read_recipe("flows/recipes/demo.toml", settings))
    job = Job.of(whole, "training.pretrain", whole.pretraining.ranks)
    assert launcher_of(job).command(job)[1:5] == ["-m", "flows.launching.kubernetes", "training.pretrain", "8"]


@pytest.mark.parametrize(("one_node", "nodes"), [(False, 4), (True, 1)])
def test_a_job_of_one_node_gets_one_pod(one_node: bool, nodes: int) -> None:
    settings = ["pretraining.cluster.kind=kubernetes", "pretraining.cluster.nodes=4", "pretraining.ranks=1"]
    whole = WholeRecipe.check(read_recipe("flows/recipes/demo.toml", settings))
    job = Job.of(whole, "training.finetune", 1, one_node=one_node)
    arguments, further = kubernetes.argument_parser().parse_known_args(launcher_of(job).command(job)[3:])
    assert kubernetes.request_of(whole, arguments, further).nodes == nodes


def test_an_image_that_cannot_be_pulled_ends_the_stage_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "STUCK_SECONDS", 0.2)
    cluster = Recorder(Change("pod", "ADDED", pod({"waiting": {"reason": "ImagePullBackOff", "message": "none"}})))
    with pytest.raises(InputError, match=r"cannot be pulled.*image, secrets"):
        supervisor(cluster).run()
    assert cluster.deleted == 1


def test_the_deadline_counts_from_the_start_of_the_job() -> None:
    job = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    cluster = Recorder(Change("job", "MODIFIED", job))
    assert supervisor(cluster).run() == 0
    assert cluster.seconds == [100 + 900]


def test_a_job_that_another_flow_adopted_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Recorder()
    one = supervisor(cluster, replace(REQUEST, config=KubernetesConfig(lease_seconds=30)))
    one._renew_seconds = 0.1
    create = cluster.create
    cluster.create = lambda objects, flow: create(objects, flow + " and another")  # type: ignore[method-assign]
    assert one.run() == 1
    assert cluster.deleted == 0
    assert "is now followed by another flow" in capsys.readouterr().err


def test_a_job_that_was_deleted_elsewhere_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Recorder(Change("job", "DELETED", {}))
    assert supervisor(cluster).run() == 1
    assert "was deleted, but not by this flow" in capsys.readouterr().out
