"""What a command takes with all the processes below it: wall-clock and CPU time, and peak memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support import REPOSITORY


class Usage(NamedTuple):
    """What a command took; memory is the peak of the process with the most."""

    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float


class ProcessTree:
    """CPU time and peak memory of a process and all below it, polled from /proc: workers are killed, not waited for."""

    _POLL_SECONDS = 0.1

    def __init__(self, pid: int):
        self._pid = pid
        self._cpu_seconds: dict[int, float] = {}
        self._peak_megabytes: dict[int, float] = {}
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def finish(self) -> tuple[float, float]:
        self._finished.set()
        self._thread.join()
        return sum(self._cpu_seconds.values()), max(self._peak_megabytes.values())

    def _poll(self) -> None:
        while not self._finished.is_set():
            self._look(self._pid)
            self._finished.wait(self._POLL_SECONDS)

    def _look(self, pid: int) -> None:
        process = Path(f"/proc/{pid}")
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            children = " ".join(path.read_text() for path in process.glob("task/*/children"))
        except OSError:
            return
        if "VmHWM" in status:
            self._cpu_seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self._peak_megabytes[pid] = int(status["VmHWM"].split()[0]) / 1024
        for child in children.split():
            self._look(int(child))


def usage_of(command: list[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command in the repository, and measure it. Raises RuntimeError if it fails, with its last lines."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
    ) as process:
        tree = ProcessTree(process.pid)
        assert process.stderr is not None
        said = process.stderr.read()
        returncode = process.wait()
        usage = Usage(time.monotonic() - started, *tree.finish())
    if returncode:
        raise RuntimeError(f"{command} ended with {returncode}: {said[-2000:].decode(errors='replace')}")
    return usage


def total(usages: Collection[Usage]) -> Usage:
    """Usage of commands that ran one after another."""
    return Usage(
        sum(usage.wall_seconds for usage in usages),
        sum(usage.cpu_seconds for usage in usages),
        max(usage.peak_megabytes for usage in usages),
    )
