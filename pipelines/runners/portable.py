"""Run a job on a Beam job server, whose workers are processes of the nodes or run in an image."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import DebugOptions, PortableOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.jobs.runner import Job
from pipelines.runners.ending import Construct, run_on_cluster

WORKER_NAME = "clozeworks-worker"

_CONNECT_SECONDS = 10.0
_LONGEST_JOB_SECONDS = 30 * 86_400


def run(job: Job, construct: Construct, _scratch: str) -> None:
    """Run a job's pipeline on the server at `preprocessing.job_endpoint`; an interrupt cancels it there.

    Raises:
        InputError: a worker found a user error; or there is no endpoint, or nothing listens there.
        OSError: a worker could not read or write a file.
        RuntimeError: the pipeline ended in another state than DONE.
    """
    endpoint = require_endpoint(job)
    _require_listener(job, endpoint)
    choose_workers(job, worker_environment(job))
    portable = job.options.view_as(PortableOptions)
    portable.job_endpoint = endpoint
    if "job_server_timeout" not in job.options.get_all_options(drop_default=True):
        # Beam's 60 seconds also end the stream of a running job's states.
        portable.job_server_timeout = _LONGEST_JOB_SECONDS
    with _failures_in_words(job, endpoint):
        run_on_cluster(beam.Pipeline(runner=PortableRunner(), options=job.options), construct)


def require_settings(job: Job) -> None:
    """As `require_endpoint`, for the table of runners."""
    require_endpoint(job)


def require_endpoint(job: Job) -> str:
    """The recipe's job server.

    Raises:
        InputError: the recipe names none.
    """
    if job.settings.job_endpoint is None:
        raise InputError(
            f"{job.recipe.path}: preprocessing.runner = {job.settings.runner!r} needs preprocessing.job_endpoint, the "
            "host:port of a Beam job server"
        )
    return job.settings.job_endpoint


@contextmanager
def _failures_in_words(job: Job, endpoint: str) -> Iterator[None]:
    """Raise the failure of a job, or of its server, as one line; a worker's own error stays what it is.

    Raises:
        InputError: the job failed on the cluster.
        ConnectionError: the job server does not answer any more.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise ConnectionError(
            f"{job.stage}: the job server at {endpoint} does not answer any more ({_code_of(error)}); "
            "its job may still run"
        ) from error
    except RuntimeError as error:
        reason = shown(next(iter(str(error).splitlines()), ""))[:500]
        raise InputError(
            f"{job.stage}: the job on {endpoint} failed ({reason}); see the server's log, and run the same command "
            "again, which resumes what is not complete"
        ) from error


def choose_workers(job: Job, environment: Mapping[str, str]) -> None:
    """Set Beam's options for the workers: in `preprocessing.image`, else as processes of the nodes.

    Options that the recipe or the command line gives take precedence.

    Args:
        job: its options are changed.
        environment: variables of worker processes; they become part of the pipeline.
    """
    portable = job.options.view_as(PortableOptions)
    if portable.environment_type is None:
        portable.environment_type = "PROCESS" if job.settings.image is None else "DOCKER"
    if portable.environment_config is None and portable.environment_type in ("PROCESS", "DOCKER"):
        portable.environment_config = job.settings.image or _process_environment(job, environment)
    # It lists every package of this machine, for Beam's own messages, which takes seconds.
    job.options.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")


def _process_environment(job: Job, environment: Mapping[str, str]) -> str:
    """Beam's description of a worker process, as JSON."""
    worker = job.settings.worker or os.path.join(os.path.dirname(sys.executable), WORKER_NAME)
    return json.dumps({"command": worker, "env": dict(environment)}, sort_keys=True)


def worker_environment(job: Job) -> dict[str, str]:
    """`preprocessing.environment`, and the variables that `preprocessing.pass_environment` names.

    Raises:
        InputError: one of the latter is not set here.
    """
    missing = [name for name in job.settings.pass_environment if name not in os.environ]
    if missing:
        raise InputError(
            f"{job.recipe.path}: preprocessing.pass_environment names {missing[0]}, which is not set here; set it, or "
            "remove it from the list"
        )
    return {**{name: os.environ[name] for name in job.settings.pass_environment}, **job.settings.environment}


def _require_listener(job: Job, endpoint: str) -> None:
    """Beam itself would wait a minute, and end with a traceback."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"{job.recipe.path}: preprocessing.job_endpoint = {endpoint!r} cannot be reached ({error}); start the job "
            "server, or correct the address"
        ) from error


def _code_of(error: grpc.RpcError) -> str:
    return str(error.code().name) if isinstance(error, grpc.Call) else type(error).__name__
