"""End a command's process without taking its interpreter apart."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from pipelines.contract.errors import exit_code_of


def exit_process(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main, and end the process with its exit code.

    Threads are waited for and exit handlers are called, but modules are not freed one by one, which takes up to a
    second after Beam or Prefect. For `__main__` only.
    """
    code = exit_code_of(main)
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
