"""Run a job on a Beam job server, whose workers are processes of the nodes or run in an image."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions, PortableOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines.contract.errors import InputError
from pipelines.jobs.runner import Job
from pipelines.runners.ending import Construct, run_on_cluster

WORKER_NAME = "clozeworks-worker"

_CONNECT_SECONDS = 10.0


def run(job: Job, construct: Construct, _scratch: str) -> None:
    """Run a job's pipeline on the server at `preprocessing.job_endpoint`; an interrupt cancels it there.

    Raises:
        InputError: a worker found a user error; or there is no endpoint, or nothing listens there.
        OSError: a worker could not read or write a file.
        RuntimeError: the pipeline ended in another state than DONE.
    """
    endpoint = job.settings.job_endpoint
    if endpoint is None:
        raise InputError(
            f"{job.recipe.path}: preprocessing.runner = {job.settings.runner!r} needs preprocessing.job_endpoint, the "
            "host:port of a Beam job server"
        )
    _require_listener(job, endpoint)
    choose_workers(job, worker_environment(job))
    job.options.view_as(PortableOptions).job_endpoint = endpoint
    run_on_cluster(beam.Pipeline(runner=PortableRunner(), options=job.options), construct)


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
    if portable.environment_config is None:
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
