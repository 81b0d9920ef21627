"""Failure messages of runs: the last lines of the failed stage, and advice.

A stage that fails raises `StageError`, whose message contains them, and Prefect stores it as the run's state message.
A run whose process was killed cannot raise: its worker reports a crash, and the lines come from the run's log.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import Flow, State, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import MissingResult, ParameterTypeError
from prefect.states import Crashed
from pydantic import ValidationError

from flows.running.launch import KEPT_LINES, StageTimeoutError
from flows.running.progress_bar import artifact_key
from pipelines.contract.errors import InputError

NEXT_STEP = (
    "Run it again with the same parameters: complete stages are skipped, pre-training resumes from its checkpoint."
)
CORRECTION = "Correct the input that the error names, then run it again: complete stages are skipped."
MORE_TIME = "Raise `stage_timeout_seconds`, then run it again: pre-training resumes from its checkpoint."


def tell_failure(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook on failure: store the message, with the last lines, as an artifact too."""
    with get_client(sync_client=True) as client:
        _create_artifact(client, flow.name, flow_run.id, state.message or "", advice_for(state))


def tell_crash(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook on a crash: add the last log lines to the run's message, and store them as an artifact too."""
    with get_client(sync_client=True) as client:
        lines = last_log_lines(client, flow_run.id)
        message = "\n".join([f"{state.message or 'The run crashed.'} Its last lines:", *lines])
        _create_artifact(client, flow.name, flow_run.id, message, NEXT_STEP)
        current = client.read_flow_run(flow_run.id).state
        # The run may already be scheduled again; that must not be undone.
        if current is not None and current.is_crashed():
            client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)


def advice_for(state: State[Any]) -> str:
    """Advice for a failed run: running it again does not help against a user error."""
    try:
        error = state.result(raise_on_failure=False)
    except MissingResult:
        return NEXT_STEP
    if isinstance(error, (InputError, ParameterTypeError, ValidationError)):
        return CORRECTION
    return MORE_TIME if isinstance(error, StageTimeoutError) else NEXT_STEP


def last_log_lines(client: SyncPrefectClient, flow_run_id: UUID) -> list[str]:
    """The last lines logged by a run and the flows within it, oldest first."""
    runs, found = [flow_run_id], [flow_run_id]
    while runs:
        within = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=runs))
        runs = [run.id for run in client.read_flow_runs(flow_run_filter=within)]
        found += runs
    logs = client.read_logs(
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=found)), limit=KEPT_LINES, sort=LogSort.TIMESTAMP_DESC
    )
    return [log.message for log in reversed(logs)]


def _create_artifact(client: SyncPrefectClient, flow: str, flow_run_id: UUID, message: str, advice: str) -> None:
    quoted = "\n".join(f"    {line}" for line in message.splitlines())
    client.create_artifact(
        ArtifactCreate(
            key=artifact_key(flow, "failure"),
            type="markdown",
            description=f"Why {flow} ended",
            data=f"{quoted}\n\n{advice}\n",
            flow_run_id=flow_run_id,
        )
    )
