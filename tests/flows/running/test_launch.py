"""A stage's process: its output, its outcome, and that no child outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.console.endings import ending_of
from flows.running import launch
from flows.running.launch import (
    StageError,
    StageStoppedError,
    StageTimeoutError,
    child_environment,
    run_command,
    run_requeued,
)
from pipelines.contract.errors import InputError

COMPLETE: Callable[[], str | None] = lambda: None  # noqa: E731
INCOMPLETE: Callable[[], str | None] = lambda: "not built yet"  # noqa: E731
HANG_SECONDS = 120
"""Only a command that waits for a child of 600 s takes as long."""

# Prints its process ids, starts a grandchild, and waits as a stage would.
FAMILY = """
    import os, subprocess, sys, time
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(os.getpid(), grandchild.pid, flush=True)
    time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], timeout_seconds: float) -> list[int]:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


def test_lines_arrive_in_order_and_in_the_calling_thread() -> None:
    lines: list[tuple[str, bool]] = []
    code = "import sys\nfor i in range(200): print(i)\nsys.stderr.write('1 %\\r2 %\\n')\nsys.stdout.write('no newline')"
    main = threading.current_thread()
    run_command("s", python(code), COMPLETE, lambda line: lines.append((line, threading.current_thread() is main)))
    assert [line for line, _ in lines] == [*map(str, range(200)), "2 %", "no newline"]
    assert all(same for _, same in lines)


def test_success_is_the_manifest_and_not_the_exit_code() -> None:
    run_command("s", python("raise SystemExit(7)"), COMPLETE, print)
    with pytest.raises(StageError) as caught:
        run_command("pretraining", python("for i in range(80): print('line', i)"), INCOMPLETE, lambda _: None)
    error = caught.value
    assert (error.stage, error.exit_code) == ("pretraining", 0)
    assert error.last_lines == tuple(f"line {i}" for i in range(30, 80))
    assert "pretraining ended with exit code 0: the stage is not complete (not built yet)" in str(error)


def test_a_killed_stage_names_its_signal() -> None:
    with pytest.raises(StageError, match="was killed by SIGKILL"):
        run_command("s", python("import os; os.kill(os.getpid(), 9)"), INCOMPLETE, print)


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (1, "ended with exit code 1"),
        (-9, "was killed by SIGKILL, most likely because memory ran out"),
        (247, "was killed by SIGKILL (exit code 247), most likely because memory ran out"),
        (137, "was killed by SIGKILL (exit code 137), most likely because memory ran out"),
        (245, "was killed by SIGSEGV (exit code 245)"),
        (143, "was killed by SIGTERM (exit code 143)"),
        (130, "was killed by SIGINT (exit code 130)"),
        (255, "was killed by SIGHUP (exit code 255)"),
        (128, "ended with exit code 128"),
    ],
)
def test_a_signal_is_known_behind_the_exit_code_of_a_launcher(exit_code: int, words: str) -> None:
    assert ending_of(exit_code) == words


def test_what_a_rank_said_is_the_reason_and_the_first_one_counts() -> None:
    code = """
        import sys
        print("error: rank 1 (process 7) was killed or crashed after step 12; run again to resume from step-10")
        print("error: another process of this run has ended")
        sys.exit(247)
    """
    with pytest.raises(StageError) as caught:
        run_command("pretraining", python(code), INCOMPLETE, print)
    assert str(caught.value).splitlines()[0] == (
        "pretraining was killed by SIGKILL (exit code 247), most likely because memory ran out: rank 1 (process 7) was "
        "killed or crashed after step 12; run again to resume from step-10; the stage is not complete (not built yet); "
        "its last lines:"
    )


def test_a_refusal_passes_through_as_one_line() -> None:
    code = "import sys; print('reading'); print('error: x.toml: run.name = 1: no', file=sys.stderr); sys.exit(2)"
    with pytest.raises(InputError) as caught:
        run_command("s", python(code), INCOMPLETE, print)
    assert str(caught.value) == "x.toml: run.name = 1: no"


def test_a_stage_that_stopped_after_a_checkpoint_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 75 is no failure, but a stage that always stops ends the run."""
    steps = tmp_path / "steps"
    code = f"""
        import sys
        open({str(steps)!r}, "a").write("x")
        sys.exit(75)
    """

    def run() -> None:
        run_command("s", python(code), lambda: "2 steps left" if len(steps.read_text()) < 3 else None, print)

    said: list[str] = []
    run_requeued(run, said.append)
    assert len(steps.read_text()) == 3
    assert [line.partition("again, ")[2] for line in said] == ["1 of at most 20 times", "2 of at most 20 times"]

    steps.write_text("")
    monkeypatch.setattr(launch, "MOST_REQUEUES", 1)
    with pytest.raises(StageStoppedError, match="exit code 75"):
        run_requeued(run, said.append)
    assert len(steps.read_text()) == 2


def test_the_child_gets_no_variables_of_prefect_and_finds_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    environment = child_environment({"MLFLOW_RUN_ID": "7"})
    assert [name for name in environment if name.startswith("PREFECT")] == ["PREFECT_SERVER_ANALYTICS_ENABLED"]
    assert environment["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
    assert environment["CLOZEWORKS_LIFELINE_PID"] == str(os.getpid())
    assert environment["MLFLOW_RUN_ID"] == "7"


def test_what_a_launcher_leaves_behind_is_ended_too() -> None:
    """DeepSpeed's launcher may end while a rank is still alive and holds the pipe open."""
    lines: list[str] = []
    launcher = textwrap.dedent(FAMILY).removesuffix("time.sleep(600)\n")
    begin = time.monotonic()
    run_command("s", python(launcher), COMPLETE, lines.append)
    grandchild = int(lines[0].split()[1])
    assert wait_until_gone([grandchild], 2.0) == []
    assert time.monotonic() - begin < HANG_SECONDS


def test_an_interrupt_ends_children_and_grandchildren() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(map(int, line.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command("s", python(FAMILY), INCOMPLETE, interrupt)
    assert len(pids) == 2
    assert wait_until_gone(pids, 2.0) == []


def test_what_a_child_says_at_its_end_is_heard_after_an_interrupt() -> None:
    lines: list[str] = []
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("checkpoint written", flush=True), sys.exit(75)))
        print("training", flush=True)
        time.sleep(600)
    """

    def interrupt(line: str) -> None:
        lines.append(line)
        if line == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command("s", python(code), INCOMPLETE, interrupt)
    assert lines == ["training", "checkpoint written"]


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.running.launch.GRACE_SECONDS", 1.0)
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_command("s", python(code), INCOMPLETE, interrupt)
    assert 1.0 <= time.monotonic() - begin < HANG_SECONDS
    assert wait_until_gone(pids, 2.0) == []


def test_a_stage_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    lines: list[str] = []
    with pytest.raises(
        StageTimeoutError, match=r"it was stopped after 2 s, and is not complete \(not built yet\)"
    ) as late:
        run_command("s", python(FAMILY), INCOMPLETE, lines.append, timeout_seconds=2.0)
    assert late.value.last_lines == tuple(lines)
    assert wait_until_gone([int(pid) for line in lines for pid in line.split()], 2.0) == []
    run_command("s", python("import time; time.sleep(600)"), COMPLETE, print, timeout_seconds=0.5)


def test_a_child_follows_its_killed_parent(tmp_path: Path) -> None:
    """SIGKILL runs no `finally`: the child must detect that its parent has ended."""
    note = tmp_path / "child.pid"
    child = f"""
        import os, time
        from pipelines.commands.lifeline import follow_lifeline
        follow_lifeline()
        open({str(note)!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    """
    parent = f"""
        from flows.running.launch import run_command
        run_command("s", {python(child)!r}, lambda: None, print)
    """
    process = subprocess.Popen(python(parent))
    try:
        deadline = time.monotonic() + 30
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(note.read_text())
        assert alive(pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = wait_until_gone([pid], 10.0)
    for orphan in left:
        os.kill(orphan, signal.SIGKILL)
    assert left == []
