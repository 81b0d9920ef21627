"""End a command's process without interpreter teardown."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from pipelines.contract.errors import exit_code_of


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """Run a command's main and exit with its code, without interpreter teardown, threads and exit handlers.

    When `main` returns, all is written and closed. Teardown sometimes aborted a finished rank in a native thread of a
    library ("terminate called without an active exception"), and the launcher reported a failure. Errors exit the
    same way: their traceback must not be followed by an abort that hides it.
    """
    try:
        exit_code = main()
    except Exception:  # noqa: BLE001 - the traceback is printed, and the process ends
        traceback.print_exc()
        exit_code = 1
    _leave(exit_code)


def run_and_leave_in_order(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main and exit with the code of `exit_code_of`, after other threads and all exit handlers.

    Only modules are not freed one by one, which takes up to a second after Beam or Prefect.
    """
    exit_code = exit_code_of(main)
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    _leave(exit_code)


def _leave(exit_code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
