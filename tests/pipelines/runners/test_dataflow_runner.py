"""The runner `dataflow`: Beam's own client against a loopback service that plays states, messages and refusals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from tests.support.preprocessing.dataflow_service import JOB_ID, DataflowService, Moment

from pipelines.contract.errors import InputError
from pipelines.jobs.runner import Job, parse_job
from pipelines.runners import dataflow
from pipelines.runners.ending import Terminated
from pipelines.runners.running import job_of

dataflow_job = pytest.importorskip("pipelines.runners.dataflow_job", reason="the extra `dataflow` is not installed")

IMAGE = "europe-west4-docker.pkg.dev/example/clozeworks/worker:1"
RECIPE = f"""
[run]
name = "Run_1"
workspace = "gs://example/runs/one"
[preprocessing]
runner = "dataflow"
image = "{IMAGE}"
[preprocessing.options]
project = "example"
region = "europe-west4"
temp_location = "gs://example/temp"
"""
PAGE = f"https://console.cloud.google.com/dataflow/jobs/europe-west4/{JOB_ID}?project=example"
NAME = "clozeworks-run-1-documents-"
BASIC, WARNING, ERROR = (f"JOB_MESSAGE_{importance}" for importance in ("BASIC", "WARNING", "ERROR"))
PENDING, RUNNING = Moment("JOB_STATE_PENDING"), Moment("JOB_STATE_RUNNING")

TRACEBACK = """Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 300, in _execute
    response = task()
pipelines.contract.errors.InputError: gs://example/texts/a.txt: holds no text [while running 'ReadPart-ptransform-5']
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataflow_job, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(dataflow_job, "_LAST_MESSAGES_SECONDS", 0.2)
    monkeypatch.setattr(dataflow_job, "_CANCEL_SECONDS", 3.0)


def job_at(directory: Path, *settings: str, service: DataflowService | None = None) -> Job:
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE)
    arguments = [part for setting in settings for part in ("--set", f"preprocessing.{setting}")]
    if service is not None:
        # Without credentials, and without a list of all packages here, which takes seconds.
        arguments += [f"--dataflow_endpoint={service.address}", "--no_auth"]
        arguments += ["--experiments=disable_logging_submission_environment"]
    return parse_job("documents", None, [str(recipe), *arguments])


def construct(pipeline: beam.Pipeline) -> None:
    _ = pipeline | "Numbers" >> beam.Create([1, 2])


def play(service: DataflowService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.address)
        dataflow.run(job_at(tmp_path, service=service), construct, str(tmp_path))


def test_a_job_is_submitted_and_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tuple((BASIC, f"Starting {number} workers in europe-west4-a.") for number in range(5))
    moments = [
        PENDING,
        Moment("JOB_STATE_RUNNING", started),
        RUNNING,
        Moment("JOB_STATE_RUNNING", ((WARNING, "Autoscaling: quota is low."),)),
        Moment("JOB_STATE_DONE", ((BASIC, "Worker pool stopped."),)),
    ]
    service = DataflowService(moments)
    play(service, tmp_path, monkeypatch)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"documents: submitted to Dataflow as job {JOB_ID}: {PAGE}",
        "documents: the job is pending",
        "documents: the job is running",
        *(f"documents: {text}" for _, text in started),
        "documents: the job is done",
        "documents: Worker pool stopped.",
    ]
    assert err.splitlines() == ["documents: WARNING: Autoscaling: quota is low."]
    assert service.requested_states == []
    assert service.submitted is not None
    assert service.submitted["name"].startswith(NAME)
    environment = service.submitted["environment"]
    assert [image["containerImage"] for image in environment["workerPools"][0]["sdkHarnessContainerImages"]] == [IMAGE]
    (staged,) = (content for name, content in service.objects.items() if name.endswith("/pipeline.pb"))
    graph = beam_runner_api_pb2.Pipeline.FromString(staged)
    assert any(transform.unique_name.startswith("Numbers") for transform in graph.components.transforms.values())


@pytest.mark.parametrize(
    ("state", "messages", "shown"),
    [
        (
            "FAILED",
            ((ERROR, TRACEBACK), (ERROR, "Workflow failed. Causes: S01 failed.")),
            "gs://example/texts/a.txt: holds no text",
        ),
        (
            "FAILED",
            ((ERROR, "A work item was attempted 4 times without success."), (ERROR, "ZONE_RESOURCE_POOL_EXHAUSTED")),
            f"documents: the job on Dataflow is failed (ZONE_RESOURCE_POOL_EXHAUSTED); see {PAGE} and",
        ),
        ("FAILED", (), f"documents: the job on Dataflow is failed; see {PAGE} and"),
        ("CANCELLED", (), f"documents: the job on Dataflow is cancelled; see {PAGE} and"),
    ],
)
def test_a_failure_is_the_workers_own_or_one_line(
    state: str, messages: Any, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = DataflowService([RUNNING, Moment(f"JOB_STATE_{state}", messages)])
    with pytest.raises(InputError) as caught:
        play(service, tmp_path, monkeypatch)
    assert str(caught.value).startswith(shown), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_service_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = [Moment("", status=status) for status in (503, 429, 404)]
    play(DataflowService([RUNNING, *away, RUNNING, Moment("JOB_STATE_DONE")]), tmp_path, monkeypatch)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "documents: Dataflow does not answer (503 The service is currently unavailable.); the job continues, asking "
        "again",
        "documents: Dataflow answers again",
    ]
    assert out.splitlines()[-1] == "documents: the job is done"


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_stopped_command_cancels_the_job(
    number: int,
    kind: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = Moment("JOB_STATE_RUNNING", before=lambda: os.kill(os.getpid(), number))
    service = DataflowService([RUNNING, stop, RUNNING, Moment("JOB_STATE_CANCELLED")])
    with pytest.raises(kind):
        play(service, tmp_path, monkeypatch)
    assert service.requested_states == [dataflow_job.dataflow.JobState.JOB_STATE_CANCELLED]
    assert "documents: cancelling the job on Dataflow" in capsys.readouterr().err


def test_a_signal_during_the_submission_cancels_what_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = DataflowService([Moment("JOB_STATE_CANCELLED")])
    answer = service.job

    def stop_and_answer(state: str) -> dict[str, Any]:
        if state == "JOB_STATE_PENDING":
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(state)

    monkeypatch.setattr(service, "job", stop_and_answer)
    with pytest.raises(Terminated):
        play(service, tmp_path, monkeypatch)
    assert service.requested_states == [dataflow_job.dataflow.JobState.JOB_STATE_CANCELLED]


@pytest.mark.parametrize(
    ("service", "shown"),
    [
        (
            DataflowService([RUNNING], refuse=(403, "Current user cannot act as service account x.")),
            "Google Cloud refuses the request (403 Current user cannot act as service account x.); check project",
        ),
        (DataflowService([RUNNING], running="another"), f"There is already active job named {NAME}"),
    ],
)
def test_a_refused_submission_is_one_line(
    service: DataflowService,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InputError, match=r"preprocessing\.runner = 'dataflow': ") as caught:
        play(service, tmp_path, monkeypatch)
    assert shown in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Retry" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('options.project=""', "options.project is not set; runner 'dataflow' needs the id of a Google Cloud project"),
        ('options.region=""', "options.region is not set; runner 'dataflow' needs a region"),
        ('options.temp_location=""', "options.temp_location is not set; runner 'dataflow' needs a directory"),
        ('options.temp_location="/tmp/x"', "options.temp_location = '/tmp/x': Dataflow stages files in Google Cloud"),
        ('options.staging_location="gs://b"', "options.staging_location = 'gs://b': Dataflow stages files"),
        (
            'environment.LANG="C"',
            "environment does not apply to runner 'dataflow', remove it; variables of the workers",
        ),
        ('worker="/opt/w"', "worker does not apply to runner 'dataflow', remove it"),
        ('job_endpoint="head:8099"', "job_endpoint does not apply to runner 'dataflow', remove it"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line(setting: str, message: str, tmp_path: Path) -> None:
    job = job_at(tmp_path, setting)
    with pytest.raises(InputError) as caught:
        dataflow.require_settings(job)
    assert f"recipe.toml: preprocessing.{message}" in str(caught.value)


def test_a_local_workspace_and_a_missing_image_are_refused_before_anything_starts(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(InputError, match="is on this machine, and Dataflow's workers cannot see it"):
        job_of("documents", None, [str(recipe), "--workspace", str(tmp_path)])
    recipe.write_text(RECIPE.replace(f'image = "{IMAGE}"\n', ""))
    with pytest.raises(InputError, match=r"preprocessing\.image is not set"):
        job_of("documents", None, [str(recipe)])


def test_a_name_is_the_same_for_the_same_workspace_and_fits_a_label(tmp_path: Path) -> None:
    job = job_at(tmp_path)
    assert dataflow.job_name(job) == dataflow.job_name(job_at(tmp_path))
    assert dataflow.job_name(job).startswith(NAME)
    other = job._replace(workspace="gs://example/runs/two")
    assert dataflow.job_name(other) != dataflow.job_name(job)
    recipe = tmp_path / "long.toml"
    recipe.write_text(RECIPE.replace("Run_1", "R" * 100))
    assert len(dataflow.job_name(parse_job("documents", None, [str(recipe)]))) == 63
