"""The runner `dataflow`: submits a job to Google Cloud Dataflow, follows it to its end, and cancels it."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    TestOptions,
    WorkerOptions,
)

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import RunConfig
from pipelines.jobs.runner import Job
from pipelines.runners.ending import Construct, Terminated, signals_held, terminated_in_order

_REQUIRED = {
    "project": "the id of a Google Cloud project",
    "region": "a region of Dataflow, such as 'europe-west4'",
    "temp_location": "a directory for temporary files, such as 'gs://bucket/temp'",
}
_REFUSED = {
    "environment": "variables of the workers are set in the image (ENV)",
    "pass_environment": "the workers have the rights of options.service_account_email",
    "worker": "the workers are containers of preprocessing.image",
    "job_endpoint": "the address of the service is options.dataflow_endpoint",
}
_LONGEST_NAME = 63
"""Characters of a job's name, which is also a label of its machines."""


def run(job: Job, construct: Construct, _scratch: str) -> None:
    """Run a job's pipeline on Dataflow to its end; an interrupt or SIGTERM cancels it there.

    Raises:
        InputError: a setting is missing, the service refuses the job, or a worker found a user error.
        OSError: a worker could not read or write a file, or the service does not answer.
        Terminated: SIGTERM arrived.
        KeyboardInterrupt: the user interrupted the command.
    """
    require_settings(job)
    try:
        # Packages of the extra `dataflow`.
        from pipelines.runners.dataflow_job import DataflowJob, service_errors
    except ImportError as error:
        raise InputError(
            f"preprocessing.runner = 'dataflow' needs packages that are not installed ({error.name}); install the "
            "extra: pip install 'clozeworks[dataflow]'"
        ) from error
    submitted: Any = None
    with terminated_in_order(), service_errors(job):
        pipeline = beam.Pipeline(runner="DataflowRunner", options=_completed(job))
        construct(pipeline)
        try:
            # A signal between the request and its answer would leave a job that nothing cancels.
            with signals_held():
                submitted = pipeline.run()
            if getattr(submitted, "has_job", False):
                DataflowJob(job, submitted).follow()
        except (KeyboardInterrupt, Terminated):
            if getattr(submitted, "has_job", False):
                DataflowJob(job, submitted).cancel()
            raise


def require_settings(job: Job) -> None:
    """Check what Dataflow needs, before anything is started.

    Raises:
        InputError: an option is missing, a setting has no meaning here, or the workers cannot see the workspace.
    """
    section = f"{job.recipe.path}: preprocessing"
    cloud = job.options.view_as(GoogleCloudOptions)
    for name, meaning in _REQUIRED.items():
        if not getattr(cloud, name):
            raise InputError(f"{section}.options.{name} is not set; runner 'dataflow' needs {meaning}")
    for name in ("temp_location", "staging_location"):
        if (place := getattr(cloud, name)) and not re.match(r"gs://[^/]+/.", place):
            raise InputError(
                f"{section}.options.{name} = {place!r}: Dataflow stages files in Google Cloud Storage; give a "
                "directory of a bucket, such as 'gs://bucket/temp'"
            )
    for name, instead in _REFUSED.items():
        if getattr(job.settings, name):
            raise InputError(f"{section}.{name} does not apply to runner 'dataflow', remove it; {instead}")
    if not job.settings.image:
        raise InputError(
            f"{section}.image is not set; runner 'dataflow' needs an image with this package, such as "
            "`infra/dataflow/launch.sh build` makes"
        )
    if storage.is_local(job.workspace) and not job.options.view_as(TestOptions).dry_run:
        raise InputError(
            f"{job.recipe.path}: run.workspace = {job.workspace!r} is on this machine, and Dataflow's workers cannot "
            "see it; give a directory of an object store, such as 'gs://bucket/runs/one'"
        )


def job_name(job: Job) -> str:
    """The name of a stage's job: the same for the same workspace, so Dataflow refuses a second one while it runs."""
    run_name = job.recipe.section("run", RunConfig).name
    start = f"clozeworks-{re.sub(r'[^a-z0-9]+', '-', run_name.lower())}"
    end = f"-{job.stage}-{hashlib.sha256(job.workspace.encode()).hexdigest()[:12]}"
    return start[: _LONGEST_NAME - len(end)].rstrip("-") + end


def _completed(job: Job) -> PipelineOptions:
    """Beam's options with those that follow from the recipe."""
    options = job.options
    options.view_as(WorkerOptions).sdk_container_image = job.settings.image
    if options.view_as(SetupOptions).sdk_location == "default":
        # The image has Beam and this package.
        options.view_as(SetupOptions).sdk_location = "container"
    cloud = options.view_as(GoogleCloudOptions)
    cloud.job_name = cloud.job_name or job_name(job)
    # Both log what is raised as well.
    for name in ("internal.apiclient", "dataflow_runner"):
        logging.getLogger(f"apache_beam.runners.dataflow.{name}").setLevel(logging.CRITICAL + 1)
    logging.getLogger("apache_beam.utils.retry").addFilter(_without_traceback)
    return options


def _without_traceback(record: logging.LogRecord) -> bool:
    """Reduce Beam's line about a request that it repeats to its first sentence."""
    record.msg, record.args = " ".join(record.getMessage().partition(" Traceback for above")[0].split()), None
    return True
