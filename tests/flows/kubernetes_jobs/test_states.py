"""What pods, events and Jobs say, in words."""

from __future__ import annotations

from typing import Any

import pytest

from flows.kubernetes_jobs.states import event_in_words, index_of, is_stuck, job_ending, pod_in_words

Document = dict[str, Any]


def pod(state: Document | None = None, node: str | None = "gpu-1", **status: Any) -> Document:
    statuses = [] if state is None else [{"name": "training", "state": state}]
    return {
        "metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": "1"}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "training", "image": "im:1", "resources": {"limits": {"memory": "2Gi"}}}],
        },
        "status": {"phase": "Pending", "containerStatuses": statuses, **status},
    }


def conditions(kind: str, status: str, **more: str) -> list[Document]:
    return [{"type": kind, "status": status, **more}]


PULL = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
SCHEDULING = conditions("PodScheduled", "False", reason="Unschedulable", message="0/2 nodes: 2 Insufficient gpu.")
TAINT = conditions("DisruptionTarget", "True", reason="DeletionByTaintManager", message="deleting due to NoExecute")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (pod(node=None, conditions=SCHEDULING), "waiting for a machine: 0/2 nodes: 2 Insufficient gpu."),
        (pod(node=None), "waiting for a machine"),
        (pod(), "starting on gpu-1"),
        (pod({"waiting": {"reason": "ContainerCreating"}}), "starting on gpu-1"),
        (pod(PULL), "its image im:1 cannot be pulled (ImagePullBackOff: not found)"),
        (
            pod({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}),
            'its container cannot start (CreateContainerConfigError: secret "s3" not found)',
        ),
        (pod({"running": {}}), "running on gpu-1"),
        (pod({"running": {}}, conditions=conditions("Ready", "False")), "not ready: its machine gpu-1 may not answer"),
        (pod({"running": {}}, conditions=TAINT), "removed from its machine, which is not ready or does not answer"),
        (pod({"terminated": {"exitCode": 0}}), "complete"),
        (pod({"terminated": {"exitCode": 75}}), "stopped by a signal after a checkpoint (exit code 75)"),
        (pod({"terminated": {"exitCode": 2, "reason": "Error"}}), "rejected its input (exit code 2)"),
        (pod({"terminated": {"exitCode": 1, "reason": "Error"}}), "failed with exit code 1"),
        (
            pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            "killed: memory ran out (limit 2Gi); raise it, or use smaller batches",
        ),
        (pod(reason="Evicted", message="The node was low on resource: memory."), "evicted: The node was low on"),
        (pod(phase="Failed", reason="UnexpectedAdmissionError"), "failed: UnexpectedAdmissionError"),
    ],
)
def test_a_pod_in_words(document: Document, words: str) -> None:
    assert pod_in_words(document).startswith(words)
    assert index_of(document) == 1


def test_only_what_the_user_must_change_is_stuck() -> None:
    assert is_stuck(pod(PULL))
    assert not is_stuck(pod(node=None, conditions=SCHEDULING))
    assert not is_stuck(pod({"waiting": {"reason": "ContainerCreating"}}))


def test_warnings_are_shown_and_what_the_pod_says_itself_is_not() -> None:
    event = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "no\nclaim",
        "involvedObject": {"kind": "Pod", "name": "p"},
    }
    assert event_in_words(event) == "Pod p: FailedMount: no claim"
    assert event_in_words(event | {"type": "Normal"}) is None
    assert event_in_words(event | {"reason": "FailedScheduling"}) is None


@pytest.mark.parametrize(
    ("kind", "reason", "codes", "code"),
    [
        ("Complete", "", [0, 0], 0),
        ("Failed", "PodFailurePolicy", [2, 1], 2),
        ("FailureTarget", "PodFailurePolicy", [2], 2),
        ("Failed", "DeadlineExceeded", [], 75),
        ("Failed", "BackoffLimitExceeded", [75, 75], 75),
        ("Failed", "FailedIndexes", [137, 1], 1),
        ("Suspended", "", [], None),
    ],
)
def test_how_a_job_ended_decides_the_exit_code(kind: str, reason: str, codes: list[int], code: int | None) -> None:
    ending = job_ending({"status": {"conditions": conditions(kind, "True", reason=reason, message="m")}}, codes)
    assert (None if ending is None else ending[0]) == code
