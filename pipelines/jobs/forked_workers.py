"""Worker processes that a command forks as its first act, so that they need not import what it has imported.

A worker that is started as a program imports Beam, Arrow and numba for two to three seconds. A fork has them, but only
a process without threads may fork: gRPC, object stores and thread pools do not survive it. So a command forks before
it starts the first of them, and each worker waits at a pipe for its settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from typing import NoReturn

_open_pipes: set[int] = set()
"""The ends to write to of all workers that wait. A worker closes its copies: a pipe that another process holds open too
would not end with the parent."""


@cache
def can_fork() -> bool:
    """Whether this system has pidfds: Linux has, except for old kernels and some sandboxes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class ForkedWorker:
    """A forked process, with what `subprocess.Popen` offers for one.

    Two threads may wait for it, unlike for a process of `multiprocessing`.
    """

    def __init__(self, pid: int, pipe: int):
        """`pipe`: a descriptor to write the settings to."""
        self.pid = pid
        self.returncode: int | None = None
        self._pipe = pipe
        # Stays open: a thread may wait on it while another one learns of the end.
        self._handle = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def begin(self, environment: Mapping[str, str]) -> None:
        """Start the work, with exactly this environment."""
        _open_pipes.discard(self._pipe)
        # A worker that was killed while it waited ends as one that is killed at work.
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(json.dumps(dict(environment)).encode())

    def dismiss(self) -> None:
        """End a worker that was never begun."""
        _open_pipes.discard(self._pipe)
        os.close(self._pipe)
        self.wait()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it runs for more than `timeout` seconds more.
        """
        while (code := self.poll()) is None:
            readiness = select.poll()
            readiness.register(self._handle, select.POLLIN)
            if not readiness.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)


class ForkedWorkers:
    """Workers that wait for their settings. Closing dismisses those that were not taken."""

    def __init__(self, count: int, work: Callable[[], None]):
        """Fork `count` processes; call it before this process has started a thread. `work`: what each then does."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._waiting: list[ForkedWorker] = []
        for _ in range(count):
            reading, writing = os.pipe()
            _open_pipes.add(writing)
            pid = os.fork()
            if pid == 0:
                _serve(reading, work)
            os.close(reading)
            self._waiting.append(ForkedWorker(pid, writing))

    def take(self) -> ForkedWorker | None:
        """A worker to begin; None if none is left."""
        return self._waiting.pop() if self._waiting else None

    def close(self) -> None:
        """Dismiss the workers that were not taken."""
        while self._waiting:
            self._waiting.pop().dismiss()


def _serve(reading: int, work: Callable[[], None]) -> NoReturn:
    """The life of a forked worker: wait for the settings, work, exit without the parent's exit handlers."""
    code = 1
    try:
        for pipe in _open_pipes:
            os.close(pipe)
        # Ctrl-C reaches every process of a terminal; the parent ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(reading, "rb") as settings:
            text = settings.read()
        if text:
            os.environ.clear()
            os.environ.update(json.loads(text))
            tempfile.tempdir = None  # kept from the parent's environment
            work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - the parent reads the code, its user the traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
