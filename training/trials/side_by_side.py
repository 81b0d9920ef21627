"""Runs trials in child processes, several at a time, with one sweep at a time per workspace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from pipelines.commands.cores import threads_of_each
from pipelines.commands.lifeline import LIFELINE_VARIABLE
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import FINETUNING
from pipelines.results.locks import workspace_lock
from training.trials.trial import Trial

CORES_PER_TRIAL = 4
"""On a CPU; leaves each trial the memory of four cores; BERT-base needs about 3 GB."""


_LOCK_NAME = "sweep.lock"
_LEASE_NAME = "sweep"
_WAITING = "sweep: waiting for another sweep in {} to end"


_END_SECONDS = 20.0


_MOST_DEATHS_IN_A_ROW = 3
"""Keeps a sweep from starting processes forever on a machine where all of them die."""


_LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip
"""A worker is a process group of one; it must not inherit our rendezvous port."""


@contextlib.contextmanager
def sole_sweep(workspace: str) -> Iterator[int]:
    """Wait until no process of another sweep uses this workspace; yields the lock, for workers to inherit.

    The kernel releases it with the last process that holds it, so a killed sweep that is started again does not run
    at the same time as a leftover worker. In an object store it is a lease of this process, and what workers inherit
    locks nothing: there the lease of each trial keeps a leftover worker from training it at the same time.
    """
    directory = storage.join(workspace, FINETUNING)
    if not storage.is_local(workspace):
        with _lease_of(workspace), open(os.devnull, "w") as nothing:
            yield nothing.fileno()
        return
    storage.make_directory(directory)
    with open(storage.join(directory, _LOCK_NAME), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(_WAITING.format(workspace), flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@contextlib.contextmanager
def _lease_of(workspace: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(workspace_lock(workspace, _LEASE_NAME))
        except InputError:
            print(_WAITING.format(workspace), flush=True)
            stack.enter_context(workspace_lock(workspace, _LEASE_NAME, math.inf))
        yield


def worker_environments(num_trials: int, side_by_side: int, gpus: Sequence[str], cores: int) -> list[dict[str, str]]:
    """Extra environment variables of each worker: its GPU, or its share of the cores.

    Args:
        num_trials: trials to train; the maximum number of workers.
        side_by_side: the setting; 0 is one per GPU or, without GPUs, one per four cores.
        gpus: as in CUDA_VISIBLE_DEVICES.
        cores: of this machine.
    """
    count = min(num_trials, side_by_side or len(gpus) or max(1, cores // CORES_PER_TRIAL))
    threads = threads_of_each(count, cores)
    if gpus:
        return [threads | {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count)]
    return [dict(threads) for _ in range(count)]


def run_side_by_side(
    trials: Sequence[Trial],
    environments: Sequence[Mapping[str, str]],
    command: Sequence[str],
    lock: int,
    on_end: Callable[[Trial, str | None], None],
) -> None:
    """Train each trial once, in one process per environment.

    A worker reads labels of trials from its standard input, one at a time, and answers each with a line of JSON: None,
    or the problem. If a worker dies, only its trial fails; a new worker continues.

    Args:
        trials: to train.
        environments: extra variables of each worker.
        command: of a worker; the file descriptor for its answers is appended as last argument.
        lock: a file that workers inherit.
        on_end: called with each finished trial and its problem, None if it succeeded.
    """
    waiting = deque(trials)
    workers: dict[int, _Worker] = {}
    deaths_in_a_row = 0
    try:
        while waiting or any(worker.trial is not None for worker in workers.values()):
            for slot, environment in enumerate(environments):
                if waiting and (slot not in workers or workers[slot].trial is None):
                    if slot not in workers:
                        workers[slot] = _start(command, environment, lock)
                    workers[slot].begin(waiting.popleft())
            by_file = {worker.answers: slot for slot, worker in workers.items()}
            for file in select.select(list(by_file), [], [])[0]:
                worker = workers[by_file[file]]
                answer, trial, worker.trial = worker.answers.readline(), worker.trial, None
                if answer:
                    problem, deaths_in_a_row = json.loads(answer), 0
                else:
                    problem, deaths_in_a_row = _ending(worker.process.wait()), deaths_in_a_row + 1
                    workers.pop(by_file[file]).close()
                if trial is not None:
                    on_end(trial, problem)
            if deaths_in_a_row >= _MOST_DEATHS_IN_A_ROW:
                for trial in waiting:
                    on_end(trial, f"not started: {deaths_in_a_row} worker processes died in a row")
                waiting.clear()
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    """A process that trains one trial after another, and its current trial."""

    def __init__(self, process: subprocess.Popen[bytes], answers: IO[bytes]) -> None:
        self.process, self.answers = process, answers
        self.trial: Trial | None = None

    def begin(self, trial: Trial) -> None:
        self.trial = trial
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It has died, which the end of its answers reports.
            self.process.stdin.write(trial.label.encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.answers.close()
        with contextlib.suppress(BrokenPipeError):  # A label not read by a dead worker.
            self.process.stdin.close()

    def end(self) -> None:
        """Stop the process; an idle one exits when its input ends."""
        if self.trial is not None:
            self.process.terminate()
        self.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _start(command: Sequence[str], environment: Mapping[str, str], lock: int) -> _Worker:
    inherited = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    reading, writing = os.pipe()
    process = subprocess.Popen(  # noqa: S603  # no shell
        [*command, str(writing)],
        env={**inherited, **environment, LIFELINE_VARIABLE: str(os.getpid())},
        stdin=subprocess.PIPE,
        pass_fds=(writing, lock),
    )
    os.close(writing)
    return _Worker(process, os.fdopen(reading, "rb", buffering=0))


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"its process was killed by {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"
