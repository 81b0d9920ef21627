"""How a training process ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


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
