"""Run a job with the runner that its recipe or its command line names, showing progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext

import apache_beam as beam

from pipelines.commands.lifeline import follow_lifeline
from pipelines.jobs.runner import Job, Progress, parse_job, quiet_logs
from pipelines.jobs.scratch import scratch_directory
from pipelines.runners import local
from pipelines.runners.ending import Construct, run_on_cluster, run_to_end
from pipelines.runners.portable import worker_environment
from pipelines.runners.table import RUNNERS


def job_of(stage: str, description: str | None, argv: list[str] | None, verb: str | None = None) -> Job:
    """As `parse_job`, and the settings have what their runner needs.

    Raises:
        InputError: a setting is wrong, or missing.
    """
    job = parse_job(stage, description, argv, verb)
    if job.beam_runner is None:
        RUNNERS[job.settings.runner].require(job)
    return job


def run_jobs(jobs: Sequence[tuple[Job, Callable[[Job], None]]], prepare: Callable[[], None] | None = None) -> None:
    """Build stages one after another, as a command does: their workers are forked while this process has no threads.

    Args:
        jobs: each with the function that builds its stage.
        prepare: called before workers are forked, which then have what it has loaded.
    """
    if prepare is not None and any(local.forks_workers(job) for job, _ in jobs):
        prepare()
    with ExitStack() as stack:
        forked = [local.fork_workers(job) for job, _ in jobs]
        for workers in forked:
            if workers is not None:
                stack.callback(workers.close)
        follow_lifeline()
        for (job, build), workers in zip(jobs, forked, strict=True):
            build(job._replace(forked=workers))


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
