"""Let a child process end with the process that it works for.

Whoever starts a stage puts its own process id into `CLOZEWORKS_LIFELINE_PID`. Every process of that stage, however
many launchers lie between, watches it: SIGKILL runs no `finally` block, so a killed parent cannot stop its children.
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

    A rank that a person's own launcher has started (LOCAL_RANK says so) follows that launcher, its parent. The process
    first gets SIGTERM, so that training can write its checkpoint, and is ended outright 20 seconds later.
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
    """Return when a process has ended, which need not be a child of ours."""
    with contextlib.suppress(AttributeError, OSError):
        # A handle on that very process: another one that gets its number later is not mistaken for it.
        handle = os.pidfd_open(pid)
        try:
            readiness = select.poll()
            readiness.register(handle, select.POLLIN)
            readiness.poll()
            return
        finally:
            os.close(handle)
    # No Linux, or an old one.
    while _alive(pid):
        time.sleep(_POLL_SECONDS)


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
