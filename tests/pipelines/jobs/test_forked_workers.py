"""Forked workers: what they get, how they end, and that none outlives its parent. Each test forks in a new process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from tests.support import REPOSITORY

from pipelines.jobs.forked_workers import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system has no pidfds")

PROLOGUE = """
import json, os, signal, subprocess, sys, tempfile, time
from pipelines.jobs.forked_workers import ForkedWorkers
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = PROLOGUE + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_a_worker_has_the_environment_that_it_is_begun_with_and_nothing_else(tmp_path: Path) -> None:
    script = """
    def work():
        found = {"environment": dict(os.environ), "temporary": tempfile.gettempdir()}
        with open(os.environ["NAME"], "w") as stream:
            json.dump(found, stream)

    tempfile.gettempdir()
    os.environ["OURS"] = "1"
    first, second = ForkedWorkers(1, work), ForkedWorkers(2, work)
    os.environ["LATER"] = "1"
    for number, workers in enumerate((second, first, second)):
        worker = workers.take()
        worker.begin({"NAME": f"{sys.argv[1]}/{number}", "TMPDIR": sys.argv[1], "LC_CTYPE": "C.UTF-8"})
        assert worker.wait() == worker.poll() == worker.returncode == 0
    assert first.take() is second.take() is None
    """
    run(script, str(tmp_path))
    for number in range(3):
        found = json.loads((tmp_path / str(number)).read_text())
        assert found["temporary"] == str(tmp_path)
        assert set(found["environment"]) == {"NAME", "TMPDIR", "LC_CTYPE"}


def test_the_end_of_a_worker_is_that_of_a_process() -> None:
    script = """
    ENDS = {
        "returns": lambda: None,
        "exits": lambda: sys.exit(3),
        "refuses": lambda: sys.exit("no"),
        "fails": lambda: 1 / 0,
        "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "ends": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "waits": lambda: time.sleep(600),
    }
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a worker does not ignore it
    workers = ForkedWorkers(len(ENDS), lambda: ENDS[os.environ["HOW"]]())
    codes = {}
    for how in ENDS:
        worker = workers.take()
        worker.begin({"HOW": how})
        try:
            codes[how] = worker.wait(60 if how != "waits" else 0.1)
        except subprocess.TimeoutExpired:
            assert worker.poll() is None
            worker.kill()
            codes[how] = worker.wait(60)
            worker.kill()  # has ended: nothing is sent to what may be another process by now
    print(json.dumps(codes))
    """
    ended = run(script)
    assert json.loads(ended.stdout) == {
        "returns": 0,
        "exits": 3,
        "refuses": 1,
        "fails": 1,
        "dies": -signal.SIGKILL,
        "ends": -signal.SIGTERM,
        "waits": -signal.SIGKILL,
    }
    assert ended.stderr.count("ZeroDivisionError") == 1


def test_a_worker_that_was_killed_while_it_waited_ends_as_killed() -> None:
    script = """
    workers = ForkedWorkers(1, lambda: None)
    worker = workers.take()
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.1)
    worker.begin({"A": "x" * 1_000_000})
    print(worker.wait())
    """
    assert run(script).stdout == f"{-signal.SIGKILL}\n"


def test_closing_ends_the_workers_that_were_not_taken() -> None:
    script = """
    workers, others = ForkedWorkers(3, lambda: print("worked")), ForkedWorkers(1, lambda: None)
    taken = workers.take()
    taken.begin({})
    taken.wait()
    workers.close()
    others.close()
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("no child is left")
    """
    assert run(script).stdout == "worked\nno child is left\n"


def test_waiting_workers_end_with_their_killed_parent() -> None:
    script = """
    groups = [ForkedWorkers(2, lambda: None) for _ in range(2)]
    print("forked", flush=True)
    time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(script)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"forked\n"
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 4
    finally:
        process.kill()
        process.wait()
    assert process.stdout.read() == b""  # no worker holds it open
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_ctrl_c_leaves_a_waiting_worker_to_its_parent() -> None:
    script = """
    workers = ForkedWorkers(1, lambda: None)
    worker = workers.take()
    while b"SigIgn:\\t0000000000000000" in open(f"/proc/{worker.pid}/status", "rb").read():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGINT)
    worker.begin({})
    print(worker.wait())
    """
    assert run(script).stdout == "0\n"
