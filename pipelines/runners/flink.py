"""The runner `flink`: a job server submits the job to a Flink cluster; Flink's own interface ends it when cancelled."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
import uuid
from http.client import HTTPException
from typing import Any

from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions

from pipelines.contract.errors import InputError
from pipelines.jobs.runner import Job
from pipelines.runners import portable
from pipelines.runners.ending import Construct, Terminated

_REQUEST_SECONDS = 5.0
_CANCEL_SECONDS = 15.0
"""A cancelled stage has 20 seconds to end."""
_ENDED = ("CANCELED", "FAILED", "FINISHED")


def run(job: Job, construct: Construct, scratch: str) -> None:
    """Run a job's pipeline on the Flink cluster at `options.flink_master`, by the server at `job_endpoint`.

    Beam's job server reports a cancelled job and lets it run on the cluster, so an interrupt or SIGTERM also cancels it
    there.

    Raises:
        InputError: a setting is missing, the cluster or the job server cannot be reached, or the job failed.
        OSError: a worker could not read or write a file.
    """
    require_settings(job)
    name = f"clozeworks-{job.stage}-{uuid.uuid4().hex[:12]}"
    job.options.view_as(GoogleCloudOptions).job_name = name
    master = job.options.view_as(FlinkRunnerOptions).flink_master
    address = master if re.match(r"https?://", master) else f"http://{master}"
    _require_cluster(job, address)
    try:
        portable.run(job, construct, scratch)
    except (KeyboardInterrupt, Terminated):
        cancel(job.stage, name, address)
        raise


def require_settings(job: Job) -> None:
    """Check what Flink needs, before anything is started.

    Raises:
        InputError: the job server or the cluster's address is missing.
    """
    portable.require_endpoint(job)
    if job.options.view_as(FlinkRunnerOptions).flink_master in ("", "[auto]", "[local]"):
        raise InputError(
            f"{job.recipe.path}: preprocessing.options.flink_master is not set; runner 'flink' needs the host:port of "
            "the cluster's REST interface, such as 'head:8081', to cancel a job there"
        )


def _require_cluster(job: Job, address: str) -> None:
    """The job server would answer after minutes of attempts, and a job could not be cancelled.

    Raises:
        InputError: Flink's REST interface does not answer there.
    """
    try:
        _request("GET", f"{address}/v1/config")
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"{job.recipe.path}: preprocessing.options.flink_master = {address!r}: Flink's REST interface does not "
            f"answer ({error}); start the cluster, or correct the address"
        ) from error


def cancel(stage: str, name: str, address: str) -> None:
    """End the jobs of this name on the cluster, and wait until they have ended, for some seconds.

    A busy job server submits a job a minute after it has accepted it, also when it is cancelled in between. So a job
    that is not there yet has not ended.

    Args:
        stage: for the lines that are printed.
        name: Flink's name of the job.
        address: of the REST interface, with its scheme.
    """
    deadline, problem = time.monotonic() + _CANCEL_SECONDS, ""
    while time.monotonic() < deadline:
        try:
            jobs = _request("GET", f"{address}/v1/jobs/overview")["jobs"]
            ours = [job for job in jobs if job["name"] == name]
            left = [job for job in ours if job["state"] not in _ENDED]
            for job in left:
                if job["state"] != "CANCELLING":
                    _request("PATCH", f"{address}/v1/jobs/{job['jid']}?mode=cancel")
            problem = "it does not end" if ours else "it is not there yet, and the job server may still submit it"
            if ours and not left:
                print(f"{stage}: the job {name} has ended on the cluster", file=sys.stderr, flush=True)
                return
        except (OSError, HTTPException) as error:
            problem = str(error)
        time.sleep(0.5)
    print(
        f"{stage}: WARNING: the job {name} may still run on {address} ({problem}); look there, and cancel it",
        file=sys.stderr,
        flush=True,
    )


def _request(method: str, url: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=_REQUEST_SECONDS) as answer:  # noqa: S310  # http by require_settings
        return json.loads(answer.read() or b"{}")
