"""Ranks on the nodes of a Slurm allocation, one task each: `kind = "slurm"`.

    flows.launching.slurm [--ranks N] [--one-node] MODULE RECIPE [arguments of the module]

`salloc` allocates the nodes, unless this program already runs in an allocation; one step of it (`slurm_node watch`)
compares the nodes and then sends beats, the other (`slurm_node rank`) is the ranks. An allocation of its own is
cancelled at the end, however that comes. `srun` hands the environment over, so none of it is on a command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flows.launching.job import Job, supervisor_command, supervisor_parser
from flows.launching.node_agent import RANKS_GRACE_SECONDS, SILENCE_SECONDS
from flows.launching.node_facts import require_same, shared_probe, versions
from flows.parameters.ranks import unsaid_ranks
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.commands.lifeline import LIFELINE_VARIABLE, follow_lifeline
from pipelines.commands.recipe_arguments import recipe_from_arguments
from pipelines.contract.errors import EXIT_FAILED, InputError, exit_code_of
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import workspace_of
from training.settings.cluster import ClusterConfig
from training.settings.pretraining import PretrainingConfig

_WHERE = "pretraining.cluster.kind = 'slurm'"
_FACTS_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 0.1
_GRANTED = re.compile(r"salloc: (?:Granted|Pending) job allocation (\d+)")
_PENDING = re.compile(r"salloc: Pending job allocation \d+")
_IMPOSSIBLE = "configuration not available"
"""Slurm queues such a request too, although no node will ever fit it."""
_NODE_FAILED = re.compile(r"(?:srun|slurmstepd): error: (Node failure on \S+)")
_PROGRAM = "flows.launching.slurm"


def command(job: Job) -> list[str]:
    """The supervisor of a job."""
    return supervisor_command(_PROGRAM, job)


def check(jobs: Sequence[Job], whole: WholeRecipe) -> None:
    """Ask Slurm whether it would take the jobs, by requests that it holds and that are taken back at once.

    Raises:
        InputError: Slurm does not answer or refuses one, or the allocation of this process is too small.
    """
    _require_commands()
    cluster = whole.pretraining.cluster
    for nodes, ranks in sorted({(1 if job.one_node else cluster.nodes, job.ranks) for job in jobs}):
        if "SLURM_JOB_ID" not in os.environ:
            _hold_a_request(nodes, ranks, cluster.options)
        elif nodes > (here := int(os.environ.get("SLURM_JOB_NUM_NODES", nodes))):
            raise InputError(f"{_WHERE}: nodes = {nodes}, but the job that this flow runs in has {here}; request more")


def _require_commands() -> None:
    if lacks := [name for name in ("salloc", "srun", "scancel", "scontrol") if shutil.which(name) is None]:
        raise InputError(f"{_WHERE}: {', '.join(lacks)} is not on PATH; run the flow's worker on a node with Slurm")


def _hold_a_request(nodes: int, ranks: int, options: Sequence[str]) -> None:
    """Raise InputError unless Slurm queues a request; it is taken back, and nothing runs."""
    said: list[str] = []
    deadline = time.monotonic() + _ANSWER_SECONDS
    with _requested(nodes, ranks, (*options, "--hold")) as (_, lines):
        for line in lines:
            said += [] if line is None else [line.removeprefix("salloc: ").removeprefix("error: ")]
            if time.monotonic() > deadline or any(_IMPOSSIBLE in each for each in said):
                break
            if line is not None and _PENDING.match(line):
                return
    said = [*said, f"Slurm does not answer within {_ANSWER_SECONDS:g} s"]
    shown = next((each for each in said if _IMPOSSIBLE in each), said[0])
    raise InputError(
        f"{_WHERE}: {nodes} nodes with {ranks} ranks each: {shown}; correct nodes, ranks or options of "
        "pretraining.cluster, or see `sinfo`"
    )


@contextlib.contextmanager
def _requested(
    nodes: int, ranks: int, options: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], Iterator[str | None]]]:
    """A request for nodes, and the lines about it until it is answered, None while there is none.

    At the end of the context a request that still waits is taken back.
    """
    size = [f"--nodes={nodes}", f"--ntasks-per-node={ranks}"]
    child = subprocess.Popen(  # noqa: S603  # no shell
        ["salloc", "--no-shell", "--job-name=clozeworks", *size, *options],  # noqa: S607  # the user's own Slurm
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert child.stdout is not None
    stream, lines = child.stdout, queue.SimpleQueue[str | None]()

    def read() -> None:
        for line in stream:
            lines.put(line.rstrip())
        lines.put(None)

    def arriving() -> Iterator[str | None]:
        while True:
            try:
                line = lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                yield None
            else:
                if line is None:
                    return
                yield line

    threading.Thread(target=read, name="salloc", daemon=True).start()
    try:
        yield child, arriving()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def main(arguments: list[str] | None = None) -> int:
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stops.append(received))
    follow_lifeline()
    # Of a process on this machine; tasks follow Slurm's step instead.
    os.environ.pop(LIFELINE_VARIABLE, None)
    parser = supervisor_parser(_PROGRAM, "Run a module on the nodes of a Slurm cluster.")
    argv = sys.argv[1:] if arguments is None else arguments
    parsed, _ = parser.parse_known_args(argv)
    recipe = recipe_from_arguments(parsed)
    cluster = recipe.section("pretraining", PretrainingConfig).cluster
    for problem in unsaid_ranks(cluster, "--ranks", parsed.ranks):
        raise InputError(problem)
    _require_commands()
    workspace = workspace_of(recipe.section("run", RunConfig))
    with _Allocation(cluster, 1 if parsed.one_node else cluster.nodes, parsed.ranks, stops) as allocation:
        watch = _Watch(allocation, workspace, recipe.path)
        address, port = watch.compare(cluster, workspace, stops)
        module = [parsed.module, *argv[argv.index(parsed.module) + 1 :]]
        return _run(allocation, watch, [address, str(port), str(parsed.ranks), *module], stops)


class _Allocation:
    """Nodes of the cluster: those that this program already runs in, else requested and cancelled at the end."""

    def __init__(self, cluster: ClusterConfig, nodes: int, ranks: int, stops: list[int]) -> None:
        self.nodes, self.ranks, self.python = nodes, ranks, cluster.python or sys.executable
        self._options, self._stops = cluster.options, stops
        self.job = os.environ.get("SLURM_JOB_ID")
        self.is_own = self.job is None

    def __enter__(self) -> _Allocation:
        if self.is_own:
            try:
                self._request()
            except BaseException:
                self._cancel()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()

    def step(self, tasks_per_node: int, program: Sequence[str], *options: str) -> subprocess.Popen[bytes]:
        """Start a step of the allocation: tasks on each of its nodes."""
        size = [f"--nodes={self.nodes}", f"--ntasks={self.nodes * tasks_per_node}"]
        size.append(f"--ntasks-per-node={tasks_per_node}")
        start = ["srun", f"--jobid={self.job}", *size, "--unbuffered", "--export=ALL", *options]
        return subprocess.Popen(  # noqa: S603  # no shell
            [*start, self.python, "-u", "-m", "flows.launching.slurm_node", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the flow's SIGTERM is for this program, which passes it on
        )

    def signal(self, name: str) -> None:
        """Send a signal to all tasks; srun itself would end them at once when it gets one."""
        assert self.job is not None
        subprocess.run(["scancel", "--quiet", f"--signal={name}", self.job], check=False)  # noqa: S603, S607

    def _request(self) -> None:
        last = ""
        with _requested(self.nodes, self.ranks, self._options) as (salloc, lines):
            for line in lines:
                if self._stops:
                    raise KeyboardInterrupt
                if line is not None:
                    print(f"cluster: {line}", flush=True)
                    last = line
                    if found := _GRANTED.match(line):
                        self.job = found[1]
            if salloc.wait():
                raise InputError(f"{_WHERE}: {last or 'salloc failed'}; correct pretraining.cluster (nodes, options)")

    def _cancel(self) -> None:
        if self.is_own and self.job is not None:
            subprocess.run(["scancel", "--quiet", self.job], check=False)  # noqa: S603, S607  # the user's own Slurm


class _Watch:
    """A task on each node that sends its facts and then beats."""

    def __init__(self, allocation: _Allocation, workspace: str, recipe: str) -> None:
        self.heard: dict[str, float] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self._said: list[str] = []
        self._nodes, self._allocation = allocation.nodes, allocation
        self._workspace, self._recipe = workspace, recipe
        self._step: subprocess.Popen[bytes] | None = None

    def compare(self, cluster: ClusterConfig, workspace: str, stops: list[int]) -> tuple[str, int]:
        """Compare the nodes; returns address and port at which the ranks meet.

        Raises:
            InputError: a node has other versions, or does not see the workspace or the recipe.
        """
        with shared_probe(workspace) as (probe, token):
            question = json.dumps({"probe": probe, "token": token, "recipe": self._recipe, "address": ""})
            program = ["watch", question, *(["cancel"] if self._allocation.is_own else [])]
            self._step = step = self._allocation.step(1, program, "--overlap", "--label")
            threading.Thread(target=self._read, args=(step,), name="watch", daemon=True).start()
            deadline = time.monotonic() + _FACTS_SECONDS
            while len(self.facts) < self._nodes:
                if stops:
                    raise KeyboardInterrupt
                if step.poll() is not None or time.monotonic() > deadline:
                    said = self._said[-1] if self._said else "nothing"
                    raise InputError(
                        f"{_WHERE}: {len(self.facts)} of {self._nodes} nodes have answered, and srun said: {said}; "
                        "correct this, or set pretraining.cluster.python"
                    )
                time.sleep(_POLL_SECONDS)
        here = versions()
        for name, facts in sorted(self.facts.items()):
            require_same(_WHERE, name, facts, here, workspace)
            if facts["recipe"] is None:
                raise InputError(f"{_WHERE}: node {name} does not see {self._recipe}; put it on a shared file system")
        first = next(facts for facts in self.facts.values() if facts["index"] == 0)
        return cluster.master_address or _address_of(first["node"]), int(first["port"])

    def lost(self) -> str | None:
        """The name of a node that has been silent for too long."""
        now = time.monotonic()
        return next((name for name, heard in self.heard.items() if now - heard > SILENCE_SECONDS), None)

    def close(self) -> None:
        """End the tasks, which end as their input does."""
        if self._step is not None and self._step.stdin is not None:
            self._step.stdin.close()

    def _read(self, step: subprocess.Popen[bytes]) -> None:
        assert step.stdout is not None
        for raw in step.stdout:
            # srun puts the number of the task in front: `1: {...}`
            text = raw.decode(errors="replace").strip()
            try:
                message = json.loads(text.partition(":")[2])
            except ValueError:
                self._said.append(text)
                continue
            self.heard[message["node"]] = time.monotonic()
            if "versions" in message:
                self.facts[message["node"]] = message


def _address_of(node: str) -> str:
    """The address by which Slurm reaches a node."""
    asked = ["scontrol", "--oneliner", "show", "node", node]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else node


def _run(allocation: _Allocation, watch: _Watch, program: list[str], stops: list[int]) -> int:
    """Run the ranks to their end, printing their lines; returns the exit code of the run."""
    # A rank that failed ends the others, after a time for their own reports.
    ranks = allocation.step(allocation.ranks, ["rank", *program], "--kill-on-bad-exit=0", "--wait=20", "--overlap")
    print(f"cluster: {allocation.nodes * allocation.ranks} ranks in job {allocation.job}", flush=True)
    assert ranks.stdout is not None
    stream = ranks.stdout

    def read() -> None:
        for raw in stream:
            text = raw.decode(errors="replace").rstrip("\r\n")
            failed = _NODE_FAILED.search(text)
            print(
                f"error: {failed[1]}; another attempt resumes from the newest checkpoint" if failed else text,
                flush=True,
            )

    reader = threading.Thread(target=read, name="ranks", daemon=True)
    reader.start()
    deadline, lost = float("inf"), None
    while ranks.poll() is None and time.monotonic() < deadline:
        if lost is None and (lost := watch.lost()) is not None:
            print(
                f"error: node {lost} is lost: nothing has been heard of it for {SILENCE_SECONDS:g} s (link or machine "
                "down); the ranks of the other nodes end, and another attempt resumes from the newest checkpoint",
                flush=True,
            )
        if deadline == float("inf") and (stops or lost):
            allocation.signal("TERM")
            deadline = time.monotonic() + RANKS_GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    if ranks.poll() is None:
        ranks.kill()
    code = ranks.wait()
    reader.join(_POLL_SECONDS * 10)
    watch.close()
    if lost is not None:
        return EXIT_FAILED
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    exit_code = exit_code_of(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
