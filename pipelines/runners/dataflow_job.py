"""A job on Dataflow's service: its page, states and messages as lines of the stage, its end, and cancelling it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.dataflow.internal.apiclient import DataflowJobAlreadyExistsError
from apache_beam.utils import retry
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import dataflow
from requests.exceptions import RequestException

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.jobs.beam_errors import first_cause
from pipelines.jobs.runner import Job

POLL_SECONDS = 5.0
"""Between two requests for a job's state and messages."""

_MOST_POLL_SECONDS = 60.0
"""The longest pause while the service does not answer."""
_REQUEST_SECONDS = 60.0
_LAST_MESSAGES_SECONDS = 50.0
"""The service writes the message that explains a failure up to some 30 seconds after the job has failed."""
_CANCEL_SECONDS = 12.0
"""A cancelled stage has 20 seconds to end."""
_PAGE = "https://console.cloud.google.com/dataflow/jobs/{region}/{id}?project={project}"

_State: TypeAlias = dataflow.JobState
_Importance: TypeAlias = dataflow.JobMessageImportance

_ENDED = frozenset(
    {
        _State.JOB_STATE_DONE, _State.JOB_STATE_FAILED, _State.JOB_STATE_CANCELLED, _State.JOB_STATE_UPDATED,
        _State.JOB_STATE_DRAINED,
    }
)  # fmt: skip
_PASSING = (exceptions.ServerError, exceptions.TooManyRequests, exceptions.NotFound, RequestException)
"""Failures of a request that often pass; the service also answers Not Found for a job that it has just created."""


class DataflowJob:
    """One submitted job.

    Args:
        job: the stage's.
        submitted: Beam's DataflowPipelineResult, whose client is used.
    """

    def __init__(self, job: Job, submitted: Any):
        cloud = job.options.view_as(GoogleCloudOptions)
        self._stage = job.stage
        self._id: str = submitted.job_id()
        self._address = {"project_id": cloud.project, "location": cloud.region, "job_id": self._id}
        self.page = _PAGE.format(region=cloud.region, id=self._id, project=cloud.project)
        client = submitted._runner.dataflow_client
        # Beam's own methods have no time-out, and log a traceback for each failed request.
        self._jobs, self._messages = client._jobs_client, client._messages_client
        self._shown_state: _State | None = None
        self._shown_messages: set[tuple[str, str]] = set()
        self._last_time: Any = None
        self._errors: list[str] = []

    def follow(self) -> None:
        """Print states and messages until the job has ended.

        Raises:
            InputError: the job did not succeed; the line names its page.
            OSError: a worker could not read or write a file.
        """
        self._say(f"submitted to Dataflow as job {self._id}: {self.page}")
        pause, is_away, last_messages_until = POLL_SECONDS, False, 0.0
        while True:
            try:
                state = self._state()
                self._show_messages()
            except _PASSING as error:
                if not is_away:
                    self._say(
                        f"Dataflow does not answer ({_reason(error)}); the job continues, asking again", sys.stderr
                    )
                is_away, pause = True, min(2 * pause, _MOST_POLL_SECONDS)
                time.sleep(pause)
                continue
            if is_away:
                self._say("Dataflow answers again", sys.stderr)
                is_away, pause = False, POLL_SECONDS
            if state in _ENDED:
                if state != _State.JOB_STATE_FAILED or self._errors:
                    break
                last_messages_until = last_messages_until or time.monotonic() + _LAST_MESSAGES_SECONDS
                if time.monotonic() > last_messages_until:
                    break
            time.sleep(pause)
        if state != _State.JOB_STATE_DONE:
            self._raise_failure(state)

    def cancel(self) -> None:
        """Cancel the job and wait for its end for a few seconds; if the service does not answer, say how to do it."""
        self._say("cancelling the job on Dataflow", sys.stderr)
        deadline = time.monotonic() + _CANCEL_SECONDS
        request = dataflow.UpdateJobRequest(
            **self._address, job=dataflow.Job(requested_state=_State.JOB_STATE_CANCELLED)
        )
        is_asked, problem = False, "no answer"
        while time.monotonic() < deadline:
            try:
                if not is_asked:
                    self._jobs.update_job(request=request, timeout=_CANCEL_SECONDS / 2)
                    is_asked = True
                if self._state() in (*_ENDED, _State.JOB_STATE_CANCELLING):
                    return
            except (exceptions.GoogleAPICallError, GoogleAuthError, RequestException) as error:
                problem = _reason(error)
                time.sleep(1.0)
        if not is_asked:
            self._say(
                f"WARNING: the job could not be cancelled ({problem}) and may still run; cancel it on {self.page}",
                sys.stderr,
            )

    def _state(self) -> _State:
        job = self._jobs.get_job(request=dataflow.GetJobRequest(**self._address), timeout=_REQUEST_SECONDS)
        state = _State(job.current_state)
        if state != self._shown_state:
            self._say(f"the job is {_in_words(state)}")
            self._shown_state = state
        return state

    def _show_messages(self) -> None:
        request = dataflow.ListJobMessagesRequest(**self._address, minimum_importance=_Importance.JOB_MESSAGE_BASIC)
        if self._last_time is not None:
            request.start_time = self._last_time
        for message in self._messages.list_job_messages(request=request, timeout=_REQUEST_SECONDS):
            # The request includes the time of the last one.
            identity = (message.id or str(message.time), message.message_text)
            if identity in self._shown_messages:
                continue
            self._shown_messages.add(identity)
            if self._last_time is None or message.time > self._last_time:
                self._last_time = message.time
            self._show_message(message)

    def _show_message(self, message: dataflow.JobMessage) -> None:
        text = message.message_text.strip()
        if message.message_importance == _Importance.JOB_MESSAGE_ERROR:
            self._errors.append(text)
            self._say(f"ERROR: {_last_line(text)}", sys.stderr)
        elif message.message_importance == _Importance.JOB_MESSAGE_WARNING:
            self._say(f"WARNING: {_last_line(text)}", sys.stderr)
        elif text:
            self._say(shown(text))

    def _raise_failure(self, state: _State) -> None:
        for text in self._errors:
            if (cause := first_cause(text)) is not None:
                raise cause
        # "A work item was attempted 4 times without success" only counts what another message explains.
        reasons = sorted(self._errors, key=lambda text: "work item was attempted" in text)
        reason = f" ({_last_line(reasons[0])})" if reasons else ""
        raise InputError(
            f"{self._stage}: the job on Dataflow is {_in_words(state)}{reason}; see {self.page} and run the same "
            "command again, which resumes what is not complete"
        )

    def _say(self, line: str, stream: Any = None) -> None:
        print(f"{self._stage}: {line}", file=stream or sys.stdout, flush=True)


@contextmanager
def service_errors(job: Job) -> Iterator[None]:
    """Raise what the service or its client library refuses as one line.

    Raises:
        InputError: credentials, permission, project, or the job itself are wrong, or it is running already.
        ConnectionError: the service does not answer.
    """
    place = f"{job.recipe.path}: preprocessing.runner = 'dataflow'"
    # Beam knows Google's errors only where apitools is installed, and else repeats a refused request as well.
    retry.GoogleAPICallError = exceptions.GoogleAPICallError
    try:
        yield
    except GoogleAuthError as error:
        raise InputError(
            f"{place}: Google Cloud gives no credentials ({_last_line(str(error))}); run `gcloud auth "
            "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    except DataflowJobAlreadyExistsError as error:
        raise InputError(
            f"{place}: {_last_line(str(error)).split('. If you')[0]}: an earlier submission builds this stage; wait "
            "for it, or cancel it, and run the same command again"
        ) from error
    except (exceptions.ServerError, RequestException) as error:
        raise ConnectionError(
            f"{place}: Dataflow does not answer ({_reason(error)}); run the same command again"
        ) from error
    except exceptions.GoogleAPICallError as error:
        raise InputError(
            f"{place}: Google Cloud refuses the request ({_reason(error)}); check project, region, permissions and the "
            "options of the machines"
        ) from error


def _in_words(state: _State) -> str:
    return str(state.name).removeprefix("JOB_STATE_").lower().replace("_", " ")


def _reason(error: Exception) -> str:
    """An error of a request in one line, without its URL."""
    if isinstance(error, exceptions.GoogleAPICallError):
        return shown(f"{error.code:d} {error.message.rpartition(': ')[2]}")[:300]
    return shown(f"{type(error).__name__}: {error}")[:300]


def _last_line(text: str) -> str:
    """The line that names the error of a traceback; of another text its first."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return shown((lines[-1] if "Traceback" in text else lines[0]).strip())[:500]
