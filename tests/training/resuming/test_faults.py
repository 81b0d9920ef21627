"""kill -9 at random moments of one run, checkpoint writing included: its weights come out as if nothing had happened.

Three kills by default; CLOZEWORKS_FAULT_KILLS says how many (`make test-faults`: 30).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.contract.manifest import read_manifest

KILLS = int(os.environ.get("CLOZEWORKS_FAULT_KILLS", "3"))
RANKS = 2
MOST_STEPS_BETWEEN_KILLS = 3
SECONDS_TO_GET_THERE = 240

pytestmark = pytest.mark.timeout(300 + SECONDS_TO_GET_THERE * (KILLS + 1))


def finish(processes: list[subprocess.Popen[str]]) -> str:
    """Wait for all ranks; what rank 0 has printed."""
    try:
        outputs = [process.communicate(timeout=SECONDS_TO_GET_THERE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs[0]


def is_writing(workspace: Any) -> bool:
    folder = os.path.join(workspace.stage(), "checkpoints")
    return os.path.isdir(folder) and any(name.startswith("incomplete-") for name in os.listdir(folder))


def last_logged_step(workspace: Any) -> int:
    path = os.path.join(workspace.stage(), "metrics.jsonl")
    return max(workspace.losses(), default=0) if os.path.exists(path) else 0


def kill_at_a_random_moment(workspace: Any, command: list[str], generator: random.Random, in_writing: bool) -> None:
    """Start all ranks, let them train some steps beyond what was reached before, and kill them together."""
    target = last_logged_step(workspace) + generator.randint(1, MOST_STEPS_BETWEEN_KILLS)
    delay_seconds = generator.uniform(0.0, 0.004 if in_writing else 0.1)
    processes = workspace.start_ranks(command, RANKS)
    deadline = time.monotonic() + SECONDS_TO_GET_THERE

    def wait_until(is_reached: Callable[[], bool], poll_seconds: float, what: str) -> None:
        while not is_reached():
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                for process in processes:
                    process.send_signal(signal.SIGABRT)  # faulthandler then prints all threads' tracebacks
                pytest.fail(f"{what} was not reached\n" + "\n".join(process.communicate()[0] for process in processes))
            time.sleep(poll_seconds)

    try:
        wait_until(lambda: last_logged_step(workspace) >= target, 0.02, f"step {target}")
        while True:
            if in_writing:
                wait_until(lambda: is_writing(workspace), 0.0005, "writing a checkpoint")
            time.sleep(delay_seconds)
            # Rank 0, which gives a checkpoint its final name, stands still while we look where it was hit.
            processes[0].send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, processes[0].pid, os.WSTOPPED | os.WNOWAIT)
            if not in_writing or is_writing(workspace):
                break
            processes[0].send_signal(signal.SIGCONT)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_weights(
    make_workspace: Callable[[str], Any], request: pytest.FixtureRequest
) -> None:
    if KILLS <= 3:
        settings: list[str] = []
        reference = request.getfixturevalue("undisturbed")
    else:
        settings = ["--set", f"pretraining.phases.0.steps={KILLS * (MOST_STEPS_BETWEEN_KILLS + 1)}"]
        reference = make_workspace("undisturbed_for_long")
        finish(reference.start_ranks(reference.command("training.pretrain", *settings), RANKS))

    workspace = make_workspace("killed")
    command = workspace.command("training.pretrain", "--set", "pretraining.checkpoint_every_steps=1", *settings)
    generator = random.Random(20_260_101)
    for kill in range(KILLS):
        kill_at_a_random_moment(workspace, command, generator, in_writing=kill % 2 == 0)
        assert read_manifest(os.path.join(workspace.path, "pretraining")) is None

    # A checkpoint that was damaged after it had been written is no obstacle either.
    newest, directory = max(workspace.checkpoints().items())
    damaged = os.path.join(os.path.dirname(directory), "step-0000009999")
    shutil.copytree(directory, damaged)
    victim = next(name for name in os.listdir(damaged) if name.endswith(".pt"))
    os.truncate(os.path.join(damaged, victim), 10)

    output = finish(workspace.start_ranks(command, RANKS))
    assert "checkpoint step-0000009999 is damaged" in output
    assert f"resumed from checkpoint step-{newest:010d}" in output
    assert workspace.losses() == reference.losses()
    assert workspace.has_weights_of(reference)
