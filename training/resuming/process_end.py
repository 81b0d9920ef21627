"""How a rank ends: it finishes the current step on SIGTERM, and one of several ranks reports why a run failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from pipelines.contract.errors import InputError, exit_code_of, first_cause
from pipelines.stores.failures import StoreError

_SECONDS_FOR_CAUSE = 3.0


STOP_SECONDS = 15.0
"""From a signal to the end of the process, at most; a supervisor that waits for less than 20 s kills it."""


class StopRequest:
    """Records SIGTERM and SIGINT, so that the current step can be finished."""

    def __init__(self) -> None:
        self.received = False
        self._deadline: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self._deadline = time.monotonic() + STOP_SECONDS
        self.received = True

    def seconds_left(self) -> float:
        """Until this process must have ended; all of them if only another rank was asked to stop."""
        return STOP_SECONDS if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def exit_code_of_rank(main: Callable[[], int]) -> int:
    """Run a command's main on one of several ranks, so that one line reports why the run failed.

    User errors, and a store that is away, occur on all ranks: the first one reports it, and the others only if the
    run has not ended meanwhile.
    A full disk or lack of memory is specific to a rank. The loss of a peer is never the cause.
    """
    is_first = os.environ.get("RANK", "0") == "0"

    def with_patience() -> int:
        try:
            return main()
        except Exception as error:
            cause = first_cause(error)
            is_lost_peer = isinstance(cause, ConnectionError) and not isinstance(cause, StoreError)
            if is_lost_peer or (isinstance(cause, InputError | StoreError) and not is_first):
                # The launcher ends all ranks as soon as one fails: give that one time to report why.
                time.sleep(_SECONDS_FOR_CAUSE)
            raise

    return exit_code_of(with_patience)
