"""The logs of a Job's pods: node 0's lines as they come, the others' only when they fail."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

KEPT_LINES = 30
_AGAIN_SECONDS = 1.0
_MARGIN_SECONDS = 10
ERROR_PREFIX = "error: "

ReadLog = Callable[[str, int | None], Iterator[tuple[str, str]]]


class PodLog:
    """The log of one pod, read in a thread until `ended` was called and all its lines are here.

    Args:
        pod: its name.
        read: times and lines of a pod's log, of the last seconds or from its start.
        print_line: called with each line; None keeps the last ones only.
    """

    def __init__(self, pod: str, read: ReadLog, print_line: Callable[[str], None] | None):
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._pod, self._read, self._print = pod, read, print_line
        self._has_ended = threading.Event()
        self._newest = ""
        self._thread = threading.Thread(target=self._follow, name=f"log-{pod}", daemon=True)
        self._thread.start()

    def ended(self) -> None:
        """The container has ended: when the log has been read once more, it is complete."""
        self._has_ended.set()

    def wait(self, seconds: float) -> None:
        """Wait until all lines are here, at most so long."""
        self._thread.join(seconds)

    def first_error(self) -> str | None:
        """The first of the last lines that is an error of one of our commands."""
        return next((line for line in self.last_lines if line.startswith(ERROR_PREFIX)), None)

    def _follow(self) -> None:
        heard = time.monotonic()
        while True:
            is_last = self._has_ended.is_set()
            before = self._newest
            since = int(time.monotonic() - heard) + _MARGIN_SECONDS if before else None
            try:
                for at, line in self._read(self._pod, since):
                    heard = time.monotonic()
                    if at <= before:
                        # Shown before the log was opened again.
                        continue
                    self._newest = at
                    self.last_lines.append(line)
                    if self._print is not None:
                        self._print(line)
            except ApiException as error:
                # The pod was deleted: its log is gone. Anything else passes, or shows in the state of the pod.
                if error.status == 404:
                    return
            except (HTTPError, OSError):
                is_last = False
            if is_last:
                return
            time.sleep(_AGAIN_SECONDS)
