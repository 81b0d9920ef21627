"""States of a Job, its pods and their events, in words."""

from __future__ import annotations

from typing import Any

from flows.kubernetes_jobs.manifest import CONTAINER, INDEX_ANNOTATION
from pipelines.contract.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_REQUEUE

Document = dict[str, Any]

IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_SHOWN_OTHERWISE = ("FailedScheduling", "Failed", "BackOff", "Evicted", "Unhealthy")
"""Reasons of events that repeat what a pod's own state says; `Unhealthy` is followed by `Killing`."""
_DISRUPTIONS = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "DeletionByTaintManager": "removed from its machine, which is not ready or does not answer",
    "EvictionByEvictionAPI": "evicted, as when its machine is drained",
    "DeletionByPodGC": "removed, because its machine no longer exists",
    "TerminationByKubelet": "ended by its machine, which shuts down or runs short of memory or disk",
}


def index_of(pod: Document) -> int:
    """Number of the node that a pod plays."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, 0))


def container_state(pod: Document) -> Document:
    """The state of the ranks' container: one key of `waiting`, `running`, `terminated`; empty before it has one."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == CONTAINER:
            state: Document = status.get("state", {})
            return state
    return {}


def exit_code_of_pod(pod: Document) -> int | None:
    """Exit code of the ranks; None as long as they have none."""
    ended = container_state(pod).get("terminated")
    return None if ended is None else int(ended["exitCode"])


def has_started(pod: Document) -> bool:
    """Whether there is a log to read."""
    return bool({"running", "terminated"} & container_state(pod).keys())


def condition(document: Document, kind: str) -> Document:
    """A condition of a pod or a Job; empty if it is not there."""
    conditions = document.get("status", {}).get("conditions") or []
    found: list[Document] = [each for each in conditions if each["type"] == kind]
    return found[0] if found else {}


def pod_in_words(pod: Document) -> str:
    """What a pod does or waits for, or how it ended."""
    status = pod.get("status", {})
    machine = pod.get("spec", {}).get("nodeName")
    state = container_state(pod)
    if ended := state.get("terminated"):
        return _ending(pod, ended)
    if status.get("reason") == "Evicted":
        return f"evicted: {status.get('message', 'no reason given')}"
    disruption = condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True":
        what = _DISRUPTIONS.get(disruption.get("reason", ""), disruption.get("reason", "disrupted"))
        return f"{what} ({disruption.get('message', machine or 'no machine')})"
    if status.get("phase") == "Failed":
        return f"failed: {status.get('reason', '')} {status.get('message', 'no reason given')}".replace("  ", " ")
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    if waiting := state.get("waiting"):
        return _waiting(pod, waiting)
    if "running" in state:
        ready = condition(pod, "Ready")
        if ready.get("status") == "False" and ready.get("reason") in (None, "NodeNotReady") and "message" not in ready:
            return f"not ready: its machine {machine} may not answer"
        return f"running on {machine}"
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"waiting for a machine: {scheduled.get('message', scheduled.get('reason', 'no reason given'))}"
    return f"starting on {machine}" if machine else "waiting for a machine"


def _ending(pod: Document, ended: Document) -> str:
    code, reason = int(ended["exitCode"]), ended.get("reason", "")
    if reason == "OOMKilled":
        limit = next(
            (
                container.get("resources", {}).get("limits", {}).get("memory")
                for container in pod["spec"]["containers"]
                if container["name"] == CONTAINER
            ),
            None,
        )
        return f"killed: memory ran out (limit {limit or 'of the machine'}); raise it, or use smaller batches"
    meanings = {
        0: "complete",
        EXIT_REQUEUE: f"stopped by a signal after a checkpoint (exit code {EXIT_REQUEUE})",
        EXIT_BAD_INPUT: f"rejected its input (exit code {EXIT_BAD_INPUT})",
    }
    words = meanings.get(
        code, f"failed with exit code {code}" + (f" ({reason})" if reason not in ("", "Error") else "")
    )
    disruption = condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True":
        words += f"; it was {_DISRUPTIONS.get(disruption.get('reason', ''), disruption.get('reason', 'disrupted'))}"
    return words


def _waiting(pod: Document, waiting: Document) -> str:
    reason, message = waiting.get("reason", ""), waiting.get("message", "no message")
    image = next(each["image"] for each in pod["spec"]["containers"] if each["name"] == CONTAINER)
    if reason in IMAGE_REASONS:
        return f"its image {image} cannot be pulled ({reason}: {message})"
    if reason in _CONFIG_REASONS:
        return f"its container cannot start ({reason}: {message})"
    return f"starting on {pod['spec'].get('nodeName')}" + (f" ({reason})" if reason != "ContainerCreating" else "")


def is_stuck(pod: Document) -> bool:
    """Whether the container waits for what only the user can change: image, secret."""
    return container_state(pod).get("waiting", {}).get("reason") in (*IMAGE_REASONS, *_CONFIG_REASONS)


def event_in_words(event: Document) -> str | None:
    """A warning about a pod or the Job; None for one that the object's own state says."""
    if event.get("type") != "Warning" or event.get("reason") in _SHOWN_OTHERWISE:
        return None
    involved = event["involvedObject"]
    return f"{involved['kind']} {involved['name']}: {event['reason']}: {' '.join(event.get('message', '').split())}"


def job_ending(job: Document, last_codes: list[int]) -> tuple[int, str] | None:
    """Exit code and words of a Job that has ended; None as long as it has not.

    Args:
        job: from the API.
        last_codes: exit code of the last pod of each node, of those that had one.
    """
    if condition(job, "Complete").get("status") == "True":
        return 0, "the Job is complete"
    # Set before the last pods have ended, so that their last lines are not lost.
    failed = condition(job, "Failed") or condition(job, "FailureTarget")
    if failed.get("status") != "True":
        return None
    reason = failed.get("reason", "")
    words = f"the Job failed: {reason}: {failed.get('message', '')}"
    if reason == "PodFailurePolicy":
        return EXIT_BAD_INPUT, words
    if reason == "DeadlineExceeded" or (last_codes and set(last_codes) == {EXIT_REQUEUE}):
        return EXIT_REQUEUE, words
    return EXIT_FAILED, words
