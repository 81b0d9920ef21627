"""Run a job with the runner that its recipe or its command line names, showing progress."""

from __future__ import annotations

import os
from contextlib import nullcontext

import apache_beam as beam

from pipelines.jobs.runner import Job, Progress, parse_job, quiet_logs
from pipelines.jobs.scratch import scratch_directory
from pipelines.runners.ending import Construct, run_on_cluster, run_to_end
from pipelines.runners.portable import worker_environment
from pipelines.runners.table import RUNNERS


def job_of(stage: str, description: str | None, argv: list[str] | None) -> Job:
    """As `parse_job`, and the settings have what their runner needs.

    Raises:
        InputError: a setting is wrong, or missing.
    """
    job = parse_job(stage, description, argv)
    if job.beam_runner is None:
        RUNNERS[job.settings.runner].require(job)
    return job


def run_pipeline(job: Job, construct: Construct, progress: Progress | None = None) -> None:
    """Build a pipeline and run it to its end, showing progress.

    Raises:
        InputError: a worker found a user error, or a setting of the runner is missing or wrong.
        OSError: a worker could not read or write a file.
        WorkerDiedError: worker processes of this machine died repeatedly.
        RuntimeError: the pipeline ended in another state than DONE, which the message names.
    """
    quiet_logs()
    os.environ.update(worker_environment(job))
    with scratch_directory() as scratch, progress.shown() if progress else nullcontext():
        if job.beam_runner is not None:
            # Beam's runners of this machine do all their work before they return a result that could be cancelled.
            is_here = any(name in job.beam_runner.lower() for name in ("direct", "fnapi"))
            (run_to_end if is_here else run_on_cluster)(beam.Pipeline(options=job.options), construct)
        else:
            RUNNERS[job.settings.runner].run(job, construct, scratch)
