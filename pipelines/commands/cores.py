"""The cores of a process."""

from __future__ import annotations

import os
import sys

THREADS_VARIABLE = "OMP_NUM_THREADS"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads_of_each(count: int, cores: int) -> dict[str, str]:
    """The variable that gives each of `count` processes its share of the cores; a user's own value is kept."""
    return {} if THREADS_VARIABLE in os.environ else {THREADS_VARIABLE: str(max(1, cores // max(1, count)))}
