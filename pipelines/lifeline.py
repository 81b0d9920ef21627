"""Let a child process end with the process that it works for.

Whoever starts a stage puts its own process id into `CLOZEWORKS_LIFELINE_PID`. Every process of that stage, however
many launchers lie between, watches it: SIGKILL runs no `finally` block, so a killed parent cannot stop its children.
"""

from __future__ import annotations

import os
import signal
import threading
import time

LIFELINE_VARIABLE = "CLOZEWORKS_LIFELINE_PID"

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 20.0


def follow_lifeline() -> None:
    """Start a daemon thread that ends this process when the lifeline process is gone; without one, do nothing.

    The process first gets SIGTERM, so that training can write its checkpoint, and is ended outright 20 seconds later.
    """
    text = os.environ.get(LIFELINE_VARIABLE)
    if text:
        threading.Thread(target=_watch, args=(int(text),), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    started = _start_time(pid)
    # Another process may get the same number.
    while _alive(pid) and _start_time(pid) == started:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # In a container whose first process reaps nothing, a killed parent stays a zombie for ever.
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True


def _start_time(pid: int) -> bytes | None:
    """When a process started, in the kernel's ticks; None where there is no /proc, or no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[19]
    except OSError:
        return None
