"""The runners that `preprocessing.runner` can name, and how each runs a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from pipelines.jobs.runner import Job
from pipelines.runners import local
from pipelines.runners.ending import Construct

Run: TypeAlias = Callable[[Job, Construct, str], None]
"""Runs a job's pipeline to its end. The last argument is a scratch directory of this machine.

Raises what a worker raised (InputError, OSError), or RuntimeError. An interrupt (KeyboardInterrupt, Terminated) ends
the work on the cluster before it leaves the function.
"""

RUNNERS: Mapping[str, Run] = {
    "local": local.run,
}
