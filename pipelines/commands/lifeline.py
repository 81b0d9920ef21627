"""End a child process when the process that it works for ends.

The process that starts a stage puts its own id into `CLOZEWORKS_LIFELINE_PID`. Every process of that stage, through
any number of launchers, watches it: SIGKILL runs no `finally` block, so a killed parent cannot stop its children.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

LIFELINE_VARIABLE = "CLOZEWORKS_LIFELINE_PID"

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 20.0


def follow_lifeline() -> None:
    """Start a daemon thread that ends this process when the lifeline process is gone; without one, do nothing.

    A rank started by another launcher (LOCAL_RANK is set) follows that launcher, its parent. The process first gets
    SIGTERM, so that training can write its checkpoint, and exits 20 seconds later.
    """
    text = os.environ.get(LIFELINE_VARIABLE) or (str(os.getppid()) if "LOCAL_RANK" in os.environ else "")
    if text:
        threading.Thread(target=_watch, args=(int(text),), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    _wait_for_end(pid)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _wait_for_end(pid: int) -> None:
    """Return when a process, not necessarily a child, has ended."""
    with contextlib.suppress(AttributeError, OSError):
        # A pidfd refers to one process, even if another one gets the same number later.
        handle = os.pidfd_open(pid)
        try:
            readiness = select.poll()
            readiness.register(handle, select.POLLIN)
            readiness.poll()
            return
        finally:
            os.close(handle)
    # Not Linux, or an old kernel.
    while _alive(pid):
        time.sleep(_POLL_SECONDS)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # In a container whose first process reaps nothing, a killed parent stays a zombie.
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True
