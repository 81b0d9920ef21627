"""Run the command of one stage as a child process that never outlives its parent."""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from flows.console.endings import ending_of
from pipelines.commands.lifeline import LIFELINE_VARIABLE
from pipelines.contract.errors import EXIT_BAD_INPUT, EXIT_REQUEUE, InputError

KEPT_LINES = 50
GRACE_SECONDS = 20.0
"""Time between SIGTERM and SIGKILL, in which training writes a checkpoint. Prefect's worker allows 30."""

MOST_REQUEUES = 20
"""Times that a stage which stopped after a checkpoint is started again within one attempt."""

_POLL_SECONDS = 0.1
_ERROR_PREFIX = "error: "
_CHILD_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class StageError(RuntimeError):
    """A stage's command ended without a complete stage; the message contains its last lines."""

    def __init__(self, stage: str, exit_code: int, problem: str, last_lines: Sequence[str]):
        self.stage = stage
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)
        super().__init__("\n".join([f"{stage} {ending_of(exit_code)}: {problem}; its last lines:", *last_lines]))


class StageTimeoutError(StageError):
    """A stage exceeded its time-out and was stopped."""


class StageStoppedError(StageError):
    """Training was stopped by its machine or scheduler, after a checkpoint (exit code 75); it may start again."""


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of a stage: ours without Prefect's variables, which refer to this run and its server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= _CHILD_SETTINGS
    # Launchers find `deepspeed`, `ninja` and Beam's workers by name.
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", os.defpath)])
    environment[LIFELINE_VARIABLE] = str(os.getpid())
    return environment | dict(extra)


def run_command(
    stage: str,
    command: Sequence[str],
    difference: Callable[[], str | None],
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> None:
    """Run a stage's command to its end, passing each line of its output to `on_line` in the calling thread.

    Success is decided by `difference` afterwards, never by the exit code: launchers return 0 for killed ranks. When
    this function ends, also by an exception in the calling thread, so does the complete process group of the child:
    SIGTERM, at most `GRACE_SECONDS`, SIGKILL. The same happens after `timeout_seconds`, if given.

    Raises:
        InputError: the command rejected its input (exit code 2); the message is the line that it printed.
        StageTimeoutError: it was not complete in time.
        StageStoppedError: it is not complete, and exited with 75.
        StageError: the stage is not complete.
    """
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
    deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else math.inf

    def take(line: str) -> None:
        last_lines.append(line)
        on_line(line)

    child = subprocess.Popen(  # noqa: S603  # no shell
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(environment or {}),
        start_new_session=True,
    )
    assert child.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), name=f"{stage}-output", daemon=True)
    is_late = False
    try:
        reader.start()
        while child.poll() is None and time.monotonic() < deadline:
            _hand_over(lines, take, wait_seconds=_POLL_SECONDS)
        is_late = child.poll() is None
    finally:
        _end_group(child)
        # The group is gone, so its end of the pipe is closed, unless a process that left the group holds it open.
        reader.join(timeout=_POLL_SECONDS * 10)
        # Also after an interrupt: training has reported meanwhile whether it wrote its checkpoint.
        _hand_over(lines, take, wait_seconds=0.0)
    if is_late and (reason := difference()):
        problem = f"it was stopped after {timeout_seconds:g} s, and is not complete ({reason})"
        raise StageTimeoutError(stage, child.returncode, problem, list(last_lines))
    _judge(stage, child.returncode, difference, list(last_lines))


def run_requeued(run: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Call `run` again while it raises StageStoppedError, at most `MOST_REQUEUES` times; `announce` each time.

    Raises:
        StageStoppedError: of the last time.
    """
    for again in range(1, MOST_REQUEUES + 1):
        try:
            return run()
        except StageStoppedError:
            announce(
                f"stopped after a checkpoint (exit code {EXIT_REQUEUE}), which is no failure: starting again, {again} "
                f"of at most {MOST_REQUEUES} times"
            )
    return run()


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for raw in stream:
            # A progress bar redraws its line by carriage returns: only the last state counts.
            text = raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
            lines.put(text)
    lines.put(None)


def _hand_over(lines: queue.SimpleQueue[str | None], take: Callable[[str], None], wait_seconds: float) -> None:
    """Pass on the lines that have arrived; wait at most `wait_seconds` for the first."""
    try:
        line = lines.get(timeout=wait_seconds) if wait_seconds else lines.get_nowait()
        while True:
            if line is None:
                # The child closed its output but is alive: without this pause the caller would spin.
                time.sleep(wait_seconds)
                return
            take(line)
            line = lines.get_nowait()
    except queue.Empty:
        return


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End every process of the child's group; a second Ctrl-C during the grace ends it at once."""
    try:
        if _signal_group(child.pid, signal.SIGTERM):
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and _group_lives(child):
                time.sleep(_POLL_SECONDS / 2)
    finally:
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()


def _group_lives(child: subprocess.Popen[bytes]) -> bool:
    child.poll()  # reaps the leader, which would otherwise keep the group alive as a zombie
    return _signal_group(child.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal; False if no process is left to receive it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _judge(stage: str, exit_code: int, difference: Callable[[], str | None], last_lines: list[str]) -> None:
    # The first of several errors is the cause; those of other ranks follow from it.
    said = next((line.removeprefix(_ERROR_PREFIX) for line in last_lines if line.startswith(_ERROR_PREFIX)), None)
    if exit_code == EXIT_BAD_INPUT and said is not None:
        raise InputError(said)
    if reason := difference():
        problem = f"the stage is not complete ({reason})"
        ended = StageStoppedError if exit_code == EXIT_REQUEUE else StageError
        raise ended(stage, exit_code, problem if said is None else f"{said}; {problem}", last_lines)
