"""Ranks as the pods of an indexed Job, created and followed through the Kubernetes API: `kind = "kubernetes"`.

The Job is this program's: it is deleted on SIGTERM, ends by itself when its deadline is no longer renewed, and is
adopted by the next attempt if this program was killed. Kubernetes replaces pods by the Job's `podFailurePolicy`.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flows.kubernetes_jobs import states
from flows.kubernetes_jobs.manifest import (
    DIGEST_ANNOTATION,
    FLOW_ANNOTATION,
    JobObjects,
    JobRequest,
    objects_of,
)
from flows.kubernetes_jobs.variables import Variables, variables_of
from flows.launching.job import Job
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.commands.lifeline import follow_lifeline
from pipelines.contract.errors import EXIT_FAILED, InputError, exit_code_of
from pipelines.contract.recipe import read_recipe

if TYPE_CHECKING:
    from flows.kubernetes_jobs.api import Change, Cluster
    from flows.kubernetes_jobs.logs import PodLog

Document = dict[str, Any]

CANCEL_SECONDS = 14
"""Time for the pods between SIGTERM and SIGKILL when the flow is cancelled; the flow allows this program 20 s."""
STUCK_SECONDS = 300.0
"""Time after which an image that cannot be pulled, or a secret that is missing, ends the stage."""

_PATIENCE_SECONDS = 30.0
"""Time in which the API must answer before the first stage of a chain starts."""
_POLL_SECONDS = 0.5
_LAST_LINES_SECONDS = 20.0
_TERMINATED = 128 + signal.SIGTERM
_DELETED = "deleted"


def command(job: Job) -> list[str]:
    """This program, with the job's module, ranks and arguments."""
    options = ["--one-node"] if job.one_node else []
    return [sys.executable, "-m", "flows.launching.kubernetes", *options, job.module, str(job.ranks), *job.arguments]


def check(jobs: Sequence[Job], whole: WholeRecipe) -> None:
    """Ask the API whether it would take the jobs; nothing is created.

    Raises:
        InputError: it does not answer, a right is missing, or it refuses the objects of a Job.
    """
    objects = []
    for job in jobs:
        arguments, further = argument_parser().parse_known_args(command(job)[3:])
        objects.append(objects_of(request_of(whole, arguments, further), _variables(whole).values))
    cluster = _cluster_of(whole, _PATIENCE_SECONDS)
    _require_rights(cluster)
    for each in objects:
        cluster.try_out(each)


def _variables(whole: WholeRecipe) -> Variables:
    return variables_of(os.environ, whole.pretraining.cluster.environment)


def _cluster_of(whole: WholeRecipe, patience_seconds: float = math.inf) -> Cluster:
    config = whole.pretraining.cluster.kubernetes
    try:
        from flows.kubernetes_jobs.api import Cluster
    except ImportError as error:
        raise InputError(
            f'pretraining.cluster.kind = "kubernetes": {error}; install the extra: pip install clozeworks[kubernetes]'
        ) from error
    return Cluster(config.namespace, config.context, say, patience_seconds)


def _require_rights(cluster: Cluster) -> None:
    # Imports the client of Kubernetes, which is an extra.
    from flows.kubernetes_jobs.rights import require_rights

    require_rights(cluster)


def argument_parser() -> argparse.ArgumentParser:
    """Parser of this program's command line; what it does not know goes to the module."""
    parser = argparse.ArgumentParser(prog="flows.launching.kubernetes", allow_abbrev=False)
    parser.add_argument("--one-node", action="store_true")
    parser.add_argument("module")
    parser.add_argument("ranks", type=int)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments, further = argument_parser().parse_known_args(argv)
    return exit_code_of(lambda: _run(arguments, further))


def request_of(whole: WholeRecipe, arguments: argparse.Namespace, further: list[str]) -> JobRequest:
    """What the arguments of this program ask for."""
    with open(arguments.recipe, encoding="utf-8") as stream:
        text = stream.read()
    cluster = whole.pretraining.cluster
    settings = [word for override in arguments.overrides for word in ("--set", override)]
    return JobRequest(
        module=arguments.module,
        recipe_text=text,
        arguments=(*settings, *further),
        run_name=whole.run.name,
        workspace=whole.run.workspace,
        local_directory=whole.run.local_directory,
        nodes=1 if arguments.one_node else cluster.nodes,
        ranks=arguments.ranks,
        config=cluster.kubernetes,
    )


def _run(arguments: argparse.Namespace, further: list[str]) -> int:
    whole = WholeRecipe.check(read_recipe(arguments.recipe, arguments.overrides))
    request, variables = request_of(whole, arguments, further), _variables(whole)
    for line in _left_out(variables, request.config.secrets):
        say(line)
    objects = objects_of(request, variables.values)
    cluster = _cluster_of(whole)
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stops.append(received))
    follow_lifeline()
    _require_rights(cluster)
    return Supervisor(cluster, objects, request, stops).run()


def _left_out(variables: Variables, secrets: Sequence[str]) -> Iterator[str]:
    """Lines about variables that pods may need and do not get."""
    if variables.credentials:
        remedy = f"they must be keys of {', '.join(secrets)}" if secrets else "name a secret in kubernetes.secrets"
        names = ", ".join(variables.credentials)
        yield f"not passed to the pods: {names}: credentials are not written into a Job; {remedy}"
    if variables.local:
        names = ", ".join(variables.local)
        yield f"not passed to the pods: {names}: of this machine only; pods need addresses that they reach"


def say(text: str) -> None:
    """Print a line about the Job, not of its ranks."""
    print(f"kubernetes: {text}", flush=True)


class Supervisor:
    """Creates or adopts one Job, and follows it to its end.

    Args:
        stops: signals that this process has received.
    """

    def __init__(self, cluster: Cluster, objects: JobObjects, request: JobRequest, stops: list[int]):
        self._cluster, self._objects, self._request, self._stops = cluster, objects, request, stops
        self.name = request.name
        self.flow = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._renew_seconds = request.config.lease_seconds / 10
        self._words: dict[str, str] = {}
        self._said: set[str] = set()
        self._logs: dict[str, PodLog] = {}
        self._pods: dict[str, Document] = {}
        self._stuck_since: dict[str, float] = {}

    def run(self) -> int:
        """Returns the exit code: 0, 75 to start again, 2 for a user error, 143 after SIGTERM, 1 otherwise."""
        if not self._begin():
            say("cancelled before its Job was created")
            return _TERMINATED
        changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        stop = threading.Event()
        self._cluster.follow(self.name, changes, stop)
        try:
            return self._follow(changes)
        finally:
            stop.set()

    def _begin(self) -> bool:
        """Create the Job or adopt the one that runs; False after SIGTERM."""
        found = self._cluster.job(self.name)
        if found is not None and (states.job_ending(found[0], []) or "deletionTimestamp" in found[0]["metadata"]):
            say(f"Job {self.name} of an earlier attempt has ended: deleting it")
            self._remove()
            found = None
        if found is not None and found[0]["metadata"]["annotations"].get(DIGEST_ANNOTATION) != self._objects.digest:
            self._replace(found[0])
            found = None
        if self._stops:
            return False
        adopted = found is not None
        self._cluster.create(self._objects, self.flow)
        size = f"{self._request.nodes} pods of {self._request.ranks} ranks"
        how = "adopted" if adopted else "created"
        say(f"{how} Job {self.name} in namespace {self._cluster.namespace}: {size}")
        self._renew()
        return True

    def _replace(self, job: Document) -> None:
        """Delete a Job with other settings, unless its flow still renews its deadline.

        Raises:
            InputError: it does.
        """
        owner = job["metadata"]["annotations"].get(FLOW_ANNOTATION, "unknown")
        before = job["spec"].get("activeDeadlineSeconds")
        say(f"Job {self.name} runs with other settings: waiting to see whether its flow ({owner}) still follows it")
        deadline = time.monotonic() + 2 * self._renew_seconds
        while time.monotonic() < deadline and not self._stops:
            found = self._cluster.job(self.name)
            if found is None:
                return
            if found[0]["spec"].get("activeDeadlineSeconds") != before:
                raise InputError(
                    f"Job {self.name}: another flow ({owner}) runs this stage of {self._request.workspace} with other "
                    "settings; wait for it or cancel it"
                )
            time.sleep(_POLL_SECONDS)
        if not self._stops:
            say(f"its flow is gone: deleting Job {self.name}")
            self._remove()

    def _remove(self) -> None:
        """Delete the Job and wait until it and its pods are gone."""
        while not self._stops:
            problem = self._cluster.delete(self.name)
            if problem is None and self._cluster.job(self.name) is None and not self._cluster.pods(self.name):
                return
            time.sleep(_POLL_SECONDS)

    def _follow(self, changes: queue.SimpleQueue[Change]) -> int:
        next_renewal = time.monotonic() + self._renew_seconds
        while not self._stops:
            if (ending := self._take(changes)) is not None:
                return self._finish(*ending, changes)
            if problem := self._stuck():
                self._delete_quietly()
                raise InputError(problem)
            if time.monotonic() >= next_renewal:
                if not self._renew():
                    print(f"error: Job {self.name} is now followed by another flow; this one ends", file=sys.stderr)
                    return EXIT_FAILED
                next_renewal = time.monotonic() + self._renew_seconds
        return self._cancel(changes)

    def _take(self, changes: queue.SimpleQueue[Change]) -> tuple[int, str] | None:
        """Show the next change; returns the exit code and words of a Job that has ended."""
        try:
            change = changes.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None
        if change.kind == "pod":
            self._take_pod(change.what, change.document)
        elif change.kind == "event":
            self._say_once(states.event_in_words(change.document))
        elif change.what == "DELETED":
            return EXIT_FAILED, f"Job {self.name} was deleted, but not by this flow"
        else:
            codes = {states.index_of(pod): states.exit_code_of_pod(pod) for pod in self._pods_by_age()}
            return states.job_ending(change.document, [code for code in codes.values() if code is not None])
        return None

    def _take_pod(self, what: str, pod: Document) -> None:
        from flows.kubernetes_jobs.logs import PodLog

        uid, index = pod["metadata"]["uid"], states.index_of(pod)
        self._pods[uid] = pod
        was_removed = what == "DELETED" and states.exit_code_of_pod(pod) is None
        words = _DELETED if was_removed else states.pod_in_words(pod)
        if self._words.get(uid) != words:
            self._words[uid] = words
            say(f"node {index}: {words}")
        if states.has_started(pod) and uid not in self._logs:
            show = (lambda line: print(line, flush=True)) if index == 0 else None
            self._logs[uid] = PodLog(pod["metadata"]["name"], self._cluster.log, show)
        if uid in self._logs and (what == "DELETED" or states.exit_code_of_pod(pod) is not None):
            self._logs[uid].ended()
            self._show_failure(uid, index, pod)

    def _show_failure(self, uid: str, index: int, pod: Document) -> None:
        """The last lines of another node than 0 that failed, once."""
        code = states.exit_code_of_pod(pod)
        if index == 0 or code in (0, 75, None) or f"log {uid}" in self._said:
            return
        self._said.add(f"log {uid}")
        log = self._logs[uid]
        log.wait(_LAST_LINES_SECONDS / 4)
        for line in log.last_lines:
            print(f"node {index}: {line}", flush=True)

    def _stuck(self) -> str | None:
        """Why no pod will start before the user changes something; None as long as there is hope."""
        now = time.monotonic()
        for uid, pod in self._pods.items():
            if not states.is_stuck(pod):
                self._stuck_since.pop(uid, None)
            elif now - self._stuck_since.setdefault(uid, now) > STUCK_SECONDS:
                return (
                    f"Job {self.name}: node {states.index_of(pod)}: {states.pod_in_words(pod)}; correct "
                    "pretraining.cluster.kubernetes (image, secrets), or its access to the registry"
                )
        return None

    def _renew(self) -> bool:
        """Move the Job's deadline; False if another flow has adopted the Job."""
        found = self._cluster.job(self.name)
        if found is None:
            return True
        job, elapsed = found
        if job["metadata"]["annotations"].get(FLOW_ANNOTATION) != self.flow:
            return False
        seconds = int(elapsed) + self._request.config.lease_seconds
        self._cluster.change(self.name, {"spec": {"activeDeadlineSeconds": seconds}})
        return True

    def _finish(self, code: int, words: str, changes: queue.SimpleQueue[Change]) -> int:
        """Show the last lines; the error of a rank comes as a line of its own, by which the flow knows it."""
        self._wait_for_pods(changes, _LAST_LINES_SECONDS)
        for uid, log in self._logs.items():
            if states.index_of(self._pods[uid]) and code and (error := log.first_error()):
                print(error, flush=True)
        say(words)
        return code

    def _wait_for_pods(self, changes: queue.SimpleQueue[Change], seconds: float) -> None:
        """Wait until all pods have ended and their logs are read, at most so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(map(self._has_ended, self._pods)):
            self._take(changes)
        for log in self._logs.values():
            log.ended()
            log.wait(2.0)

    def _has_ended(self, uid: str) -> bool:
        return self._words[uid] == _DELETED or states.exit_code_of_pod(self._pods[uid]) is not None

    def _pods_by_age(self) -> list[Document]:
        return sorted(self._pods.values(), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def _say_once(self, words: str | None) -> None:
        if words is not None and words not in self._said:
            self._said.add(words)
            say(words)

    def _delete_quietly(self) -> bool:
        if problem := self._cluster.delete(self.name, CANCEL_SECONDS):
            lease = self._request.config.lease_seconds
            say(f"Job {self.name} could not be deleted ({problem}); it ends by itself within {lease} s")
        return problem is None

    def _cancel(self, changes: queue.SimpleQueue[Change]) -> int:
        """Delete the Job, and show the last lines until its pods have ended."""
        say(f"cancelled: deleting Job {self.name}, whose ranks have {CANCEL_SECONDS} s for a checkpoint")
        if self._delete_quietly():
            self._wait_for_pods(changes, CANCEL_SECONDS + 2)
        return _TERMINATED


if __name__ == "__main__":
    raise SystemExit(main())
