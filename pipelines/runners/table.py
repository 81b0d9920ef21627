"""The runners that `preprocessing.runner` can name, and how each runs a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipelines.jobs.runner import Job
from pipelines.runners import dataflow, flink, local, portable, spark
from pipelines.runners.ending import Construct


class Runner(NamedTuple):
    """A runner.

    run: runs a job's pipeline to its end. The last argument is a scratch directory of this machine, removed afterwards.
        Raises what a worker raised (InputError, OSError), or RuntimeError. An interrupt (KeyboardInterrupt, Terminated)
        ends the work on the cluster before it leaves the function.
    require: raises an InputError where a setting that the runner needs is missing or does not fit; called before
        anything is changed.
    """

    run: Callable[[Job, Construct, str], None]
    require: Callable[[Job], None] = lambda _job: None


RUNNERS: Mapping[str, Runner] = {
    "local": Runner(local.run),
    "spark": Runner(spark.run, spark.require_settings),
    "dataflow": Runner(dataflow.run, dataflow.require_settings),
    "flink": Runner(flink.run, flink.require_settings),
    "portable": Runner(portable.run, portable.require_settings),
}
