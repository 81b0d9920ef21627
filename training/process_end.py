"""How a training process ends: by a signal, which it may finish a step for, and without being torn down."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pipelines.recipe import EXIT_BAD_INPUT, InputError, exit_code_of

_SECONDS_FOR_FIRST_RANK = 3.0


class StopRequest:
    """Remembers SIGTERM and SIGINT, so that the step that is under way can be finished."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """Run a command's main and end the process with its exit code, without tearing the interpreter down.

    When `main` returns, all is written and closed. Taking the interpreter apart then aborted a finished rank now and
    then, in a native thread of a library ("terminate called without an active exception"), and the launcher reported a
    failure. An error leaves the same way: its traceback shall not be followed by an abort that hides it.
    """
    try:
        exit_code = main()
    except Exception:  # noqa: BLE001 - told in full, and the process ends
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def exit_code_of_rank(main: Callable[[], int]) -> int:
    """Run a command's main on one of several ranks: all meet the same mistake, the first one tells it."""
    if os.environ.get("RANK", "0") == "0":
        return exit_code_of(main)
    try:
        return main()
    except InputError:
        # The launcher ends all ranks as soon as one fails: leave rank 0 the time to say why.
        time.sleep(_SECONDS_FOR_FIRST_RANK)
        return EXIT_BAD_INPUT
