"""The runner `local`: worker processes of this machine, watched, and repeated where one dies or storage fails."""

from __future__ import annotations

import errno
import sys
import threading
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, WorkerOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.commands.cores import available_cores
from pipelines.jobs import local_worker
from pipelines.jobs.forked_workers import ForkedWorkers, can_fork
from pipelines.jobs.runner import Job
from pipelines.jobs.worker_processes import Crew, WorkerDiedError, environment_of
from pipelines.runners.ending import Construct, run_to_end

MOST_RETRIES = 3
"""How often local work is retried after its first failure; finished units are not repeated."""

_RETRY_SECONDS = 2.0
"""Pause before a retry after a storage failure; each retry waits longer by this."""
_ABANDON_SECONDS = 20.0
"""Time for Beam's own threads to end once a worker has died."""
_TRANSIENT = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    }
)  # fmt: skip
"""Failures of storage or network that often pass; a full disk or a missing permission does not."""


def run(job: Job, construct: Construct, scratch: str) -> None:
    """Run a job's pipeline on this machine.

    The complete run is repeated, `MOST_RETRIES` times at most, when a worker process has died or storage has failed
    with a transient error; units finished so far are kept.

    Raises:
        InputError: a worker found a user error.
        OSError: a worker could not read or write a file.
        WorkerDiedError: worker processes died repeatedly.
        RuntimeError: the pipeline ended in another state than DONE.
    """
    workers = num_workers(job)
    job.options.view_as(DirectOptions).direct_num_workers = workers
    job.options.view_as(WorkerOptions).default_sdk_harness_log_level = "WARNING"
    for retry in range(MOST_RETRIES + 1):
        try:
            if workers == 1:
                run_to_end(beam.Pipeline(runner=FnApiRunner(), options=job.options), construct)
            else:
                _run_with_crew(job, construct, scratch)
        except (WorkerDiedError, OSError) as error:
            if retry == MOST_RETRIES or not _is_worth_retrying(error):
                raise
            print(
                f"{error}; retrying ({retry + 1} of {MOST_RETRIES}), finished work is kept",
                file=sys.stderr,
                flush=True,
            )
            if isinstance(error, OSError):
                time.sleep(_RETRY_SECONDS * (retry + 1))
        else:
            return


def num_workers(job: Job) -> int:
    """Number of worker processes; with one, the work is done in the job's own process."""
    return job.workers or available_cores()


def forks_workers(job: Job) -> bool:
    """Whether the job's workers are forked; else they are started as programs, if there are any."""
    is_local = job.beam_runner is None and job.settings.runner == "local"
    # A variable of the recipe may be one that a library reads when it is imported.
    return is_local and num_workers(job) > 1 and not job.settings.environment and can_fork()


def fork_workers(job: Job) -> ForkedWorkers | None:
    """Fork the job's workers, before this process has threads; None if they are not forked."""
    return ForkedWorkers(num_workers(job), local_worker.main) if forks_workers(job) else None


def _is_worth_retrying(error: WorkerDiedError | OSError) -> bool:
    return isinstance(error, WorkerDiedError) or error.errno in _TRANSIENT


def _run_with_crew(job: Job, construct: Construct, scratch: str) -> None:
    """One run with worker processes; it ends when one of them dies."""
    woken = threading.Event()
    problems: list[BaseException] = []
    crew = Crew(woken, {"TMPDIR": scratch}, job.forked)

    def work() -> None:
        try:
            run_to_end(beam.Pipeline(runner=FnApiRunner(environment), options=job.options), construct)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            problems.append(error)
        finally:
            woken.set()

    with environment_of(crew) as environment:
        # In a separate thread: Beam may keep waiting for a dead worker, this thread must not.
        runner = threading.Thread(target=work, name="beam", daemon=True)
        runner.start()
        woken.wait()
        runner.join(_ABANDON_SECONDS if crew.death else None)
    if crew.death is not None:
        raise WorkerDiedError(crew.death)
    if problems:
        raise problems[0]
