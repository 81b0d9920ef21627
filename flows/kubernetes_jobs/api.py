"""Calls to the Kubernetes API that one Job needs, with patience while it does not answer."""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

from kubernetes import client, config, watch
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from flows.kubernetes_jobs.manifest import CONTAINER, FLOW_ANNOTATION, JOB_NAME_LABEL, JobObjects
from pipelines.contract.errors import InputError

Document = dict[str, Any]
T = TypeVar("T")

REQUEST_SECONDS = 15.0
WATCH_SECONDS = 30
"""A watch is opened again after this time; one that is silent for longer has lost its connection."""
LOG_SECONDS = 300.0
"""A log that is silent for this time is opened again: its connection may be lost."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_NOT_FOUND, _CONFLICT, _GONE, _TOO_MANY = 404, 409, 410, 429
_REMEDIES = {
    401: "renew the credentials of kubeconfig",
    403: "grant the flow's user or service account the rights in infra/kubernetes/launching.yaml",
    404: "create the namespace, or correct pretraining.cluster.kubernetes.namespace",
    422: "correct the setting or the template that it names",
}


class Change(NamedTuple):
    """A change that a watch reports: kind of object (`job`, `pod`, `event`), `ADDED`, `MODIFIED` or `DELETED`, it."""

    kind: str
    what: str
    document: Document


class Cluster:
    """The API of one cluster, for the objects of one namespace.

    Args:
        announce: called when the API stops answering, and when it answers again.
        patience_seconds: how long a call is repeated while the API does not answer; a Job that runs needs no end.

    Raises:
        InputError: there is no configuration, or no such context.
    """

    def __init__(
        self,
        namespace: str,
        context: str | None,
        announce: Callable[[str], None],
        patience_seconds: float = math.inf,
    ):
        self.namespace = namespace
        self._announce = announce
        self._patience_seconds = patience_seconds
        self._is_away = False
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config()
            else:
                config.load_kube_config(context=context)
        except config.ConfigException as error:
            raise InputError(
                f"pretraining.cluster.kubernetes.context = {context!r}: {error}; set KUBECONFIG to a file that reaches "
                "the cluster, or correct the context"
            ) from error
        self._batch, self._core = client.BatchV1Api(), client.CoreV1Api()
        self._rights = client.AuthorizationV1Api()

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether this user has a right in the namespace; `resource` may name a subresource, as in `pods/log`."""
        name, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        review = self._patiently(
            lambda: self._rights.create_self_subject_access_review(
                {"spec": {"resourceAttributes": asked}}, _request_timeout=REQUEST_SECONDS
            )
        )
        return review is not None and bool(review.status.allowed)

    def try_out(self, objects: JobObjects) -> None:
        """Let the API check a Job's objects without creating them; those that exist already are accepted.

        Raises:
            InputError: the API refuses one, or the namespace does not exist.
        """
        dry: Document = {"dry_run": "All", "_request_timeout": REQUEST_SECONDS}
        self._once(lambda: self._batch.create_namespaced_job(self.namespace, objects.job, **dry))
        self._once(lambda: self._core.create_namespaced_service(self.namespace, objects.service, **dry))
        self._once(lambda: self._core.create_namespaced_config_map(self.namespace, objects.config_map, **dry))

    def job(self, name: str) -> tuple[Document, float] | None:
        """A Job, and the seconds that have passed since it started, by the server's clock; None if there is none."""
        answer = self._patiently(
            lambda: self._batch.read_namespaced_job_with_http_info(
                name, self.namespace, _request_timeout=REQUEST_SECONDS
            )
        )
        if answer is None:
            return None
        job = self._plain(answer[0])
        started = job.get("status", {}).get("startTime")
        now = parsedate_to_datetime(answer[2]["Date"])
        return job, (now - datetime.fromisoformat(started)).total_seconds() if started else 0.0

    def pods(self, name: str) -> list[Document]:
        """The pods of a Job, also ended ones."""
        found = self._patiently(lambda: self._core.list_namespaced_pod(self.namespace, **self._of(name)))
        return [] if found is None else [self._plain(pod) for pod in found.items]

    def create(self, objects: JobObjects, flow: str) -> None:
        """Create what of a Job's objects does not exist, and let the Job start.

        Raises:
            InputError: the API refuses them.
        """
        name, timeout = objects.job["metadata"]["name"], REQUEST_SECONDS
        body = objects.job | {"metadata": _with_flow(objects.job["metadata"], flow)}
        self._once(lambda: self._batch.create_namespaced_job(self.namespace, body, _request_timeout=timeout))
        found = self.job(name)
        if found is None:
            raise InputError(f"Job {name}: it was deleted while it was created; run the same command again")
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": found[0]["metadata"]["uid"]}
        service, config_map = (
            each | {"metadata": each["metadata"] | {"ownerReferences": [owner]}}
            for each in (objects.service, objects.config_map)
        )
        self._once(lambda: self._core.create_namespaced_service(self.namespace, service, _request_timeout=timeout))
        self._once(
            lambda: self._core.create_namespaced_config_map(self.namespace, config_map, _request_timeout=timeout)
        )
        self.change(name, {"metadata": {"annotations": {FLOW_ANNOTATION: flow}}, "spec": {"suspend": False}})

    def change(self, name: str, patch: Document) -> None:
        """Merge fields into a Job."""
        timeout = REQUEST_SECONDS
        self._patiently(lambda: self._batch.patch_namespaced_job(name, self.namespace, patch, _request_timeout=timeout))

    def delete(self, name: str, grace_seconds: int | None = None) -> str | None:
        """Delete a Job with all that it owns; its pods end within `grace_seconds`, or their own grace period.

        The API is asked once; returns why it did not answer, or None.
        """
        timeout = REQUEST_SECONDS / 3
        calls: list[Callable[[], Any]] = [
            lambda: self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy="Background", _request_timeout=timeout
            ),
            lambda: self._core.delete_collection_namespaced_pod(
                self.namespace,
                label_selector=f"{JOB_NAME_LABEL}={name}",
                grace_period_seconds=grace_seconds,
                _request_timeout=timeout,
            ),
        ]
        for call in calls:
            try:
                call()
            except (HTTPError, client.ApiException, OSError) as error:
                if not (isinstance(error, client.ApiException) and error.status == _NOT_FOUND):
                    return reason_of(error)
        return None

    def log(self, pod: str, since_seconds: int | None) -> Iterator[tuple[str, str]]:
        """Times and lines of a pod's log as they are written, until its container ends or the connection breaks.

        Args:
            pod: its name.
            since_seconds: age of the oldest lines; None reads from the start.
        """
        since = {} if since_seconds is None else {"since_seconds": since_seconds}
        response = self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            container=CONTAINER,
            follow=True,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(REQUEST_SECONDS, LOG_SECONDS),
            **since,
        )
        try:
            if response.status >= 400:
                raise client.ApiException(status=response.status, reason=response.reason)
            rest = b""
            for piece in response.stream():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    at, _, text = line.decode(errors="replace").partition(" ")
                    # A progress bar redraws its line by carriage returns: only the last state counts.
                    yield at, text.rstrip("\r").rpartition("\r")[2]
        finally:
            response.close()
            response.release_conn()

    def follow(self, name: str, changes: queue.SimpleQueue[Change], stop: threading.Event) -> None:
        """Start threads that watch a Job, its pods and their events, and put each change into `changes`."""
        core, batch = self._core, self._batch
        watched: dict[str, tuple[Callable[..., Any], Document]] = {
            "job": (batch.list_namespaced_job, {"field_selector": f"metadata.name={name}"}),
            "pod": (core.list_namespaced_pod, {"label_selector": f"{JOB_NAME_LABEL}={name}"}),
            "event": (core.list_namespaced_event, {}),
        }
        for kind, (call, selector) in watched.items():
            arguments = (kind, call, selector, name, changes, stop)
            threading.Thread(target=self._watch, args=arguments, name=f"watch-{kind}", daemon=True).start()

    def _watch(
        self,
        kind: str,
        call: Callable[..., Any],
        selector: Document,
        name: str,
        changes: queue.SimpleQueue[Change],
        stop: threading.Event,
    ) -> None:
        """Without a resource version each watch begins with the present state, so nothing between two is missed."""
        options = selector | {
            "timeout_seconds": WATCH_SECONDS,
            "_request_timeout": (REQUEST_SECONDS, 2 * WATCH_SECONDS),
        }
        pause = _FIRST_PAUSE_SECONDS
        known: dict[str, Document] = {}
        while not stop.is_set():
            seen: dict[str, Document] = {}
            try:
                if kind == "pod":
                    # A pod that was deleted between two watches is reported by none.
                    seen = {pod["metadata"]["uid"]: pod for pod in self.pods(name)}
                    for uid in known.keys() - seen.keys():
                        changes.put(Change(kind, "DELETED", known[uid]))
                    known = seen
                for change in watch.Watch().stream(call, self.namespace, deserialize=False, **options):
                    document = change["object"]
                    if change["type"] == "ERROR":
                        break
                    if kind != "event" or document["involvedObject"].get("name", "").startswith(name):
                        changes.put(Change(kind, change["type"], document))
                    if kind == "pod":
                        known[document["metadata"]["uid"]] = document
                        if change["type"] == "DELETED":
                            del known[document["metadata"]["uid"]]
                self._answers()
                pause = _FIRST_PAUSE_SECONDS
            except (HTTPError, client.ApiException, json.JSONDecodeError, OSError) as error:
                if stop.is_set():
                    return
                self._is_silent(error)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _of(self, name: str) -> Document:
        return {"label_selector": f"{JOB_NAME_LABEL}={name}", "_request_timeout": REQUEST_SECONDS}

    def _plain(self, model: Any) -> Document:
        plain: Document = self._core.api_client.sanitize_for_serialization(model)
        return plain

    def _once(self, create: Callable[[], Any]) -> None:
        """Create an object unless it exists: an attempt before this one may have been killed between two objects."""
        try:
            self._patiently(create, missing_is_none=False)
        except InputError as error:
            cause = error.__cause__
            if not (isinstance(cause, client.ApiException) and cause.status == _CONFLICT):
                raise

    def _patiently(self, call: Callable[[], T], missing_is_none: bool = True) -> T | None:
        """The answer to a call, repeated while the API does not answer; None if there is no such object.

        Raises:
            InputError: the API refuses it.
        """
        pause, deadline = _FIRST_PAUSE_SECONDS, time.monotonic() + self._patience_seconds
        while True:
            try:
                answer = call()
                self._answers()
                return answer
            except client.ApiException as error:
                if error.status == _NOT_FOUND and missing_is_none:
                    return None
                if 400 <= error.status < 500 and error.status != _TOO_MANY:
                    remedy = _REMEDIES.get(error.status, "see the message")
                    raise InputError(f"Kubernetes, namespace {self.namespace}: {reason_of(error)}; {remedy}") from error
                silence: Exception = error
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"][1:])
                raise InputError(f"the template of the Job: {place}: {first['msg']}; correct it") from error
            except (HTTPError, OSError) as error:
                silence = error
            if time.monotonic() + pause > deadline:
                raise InputError(
                    f"Kubernetes, namespace {self.namespace}: the API does not answer ({reason_of(silence)}); check "
                    "that it runs, KUBECONFIG and pretraining.cluster.kubernetes.context"
                ) from silence
            self._is_silent(silence)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _is_silent(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            self._announce(f"the Kubernetes API does not answer ({reason_of(error)}); the Job runs on, trying again")

    def _answers(self) -> None:
        if self._is_away:
            self._is_away = False
            self._announce("the Kubernetes API answers again")


def reason_of(error: Exception) -> str:
    """Why a call failed, in one line."""
    if isinstance(error, client.ApiException):
        try:
            return " ".join(str(json.loads(error.body or "")["message"]).split())
        except (TypeError, ValueError, KeyError):
            return f"{error.status} {error.reason}"
    return " ".join(str(error).split())[:300]


def _with_flow(metadata: Document, flow: str) -> Document:
    return metadata | {"annotations": metadata["annotations"] | {FLOW_ANNOTATION: flow}}
