"""Build one stage as a Prefect task: skip it if it is complete, else launch, track and time it."""

from __future__ import annotations

import textwrap
import time
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff

from flows.console.narration import Narrator
from flows.parameters.requests import BaseRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.running import timings
from flows.running.launch import StageError, StageTimeoutError, run_command, run_requeued
from flows.running.outcomes import StageOutcome, shown_seconds
from flows.running.plan import Stage
from flows.running.progress_bar import StageProgress
from flows.tracking.runs import Tracker

REASON_WIDTH = 160
"""Maximum characters shown of a reason: a changed list of sources would fill the screen."""

RETRY_DELAY_SECONDS = 30.0
"""Delay before the second attempt; it doubles with each further one."""
RETRY_JITTER = 0.5
"""Share by which Prefect varies a delay, so that runs that failed together do not retry at the same time."""


def build_stage(
    stage: Stage, request: BaseRequest, whole: WholeRecipe, tracker: Tracker, parent_run_id: str
) -> StageOutcome:
    """Build one stage unless it is complete; all attempts are one run in MLflow and one task run in Prefect.

    Raises:
        InputError: the stage's command rejected its input.
        StageError: the stage's command ended and the stage is not complete, also at the last attempt.
    """
    if request.rebuild and stage.is_restartable:
        stage = stage.restarted(parent_run_id)
    attempts = run_stage.with_options(
        retries=request.stage_retries, retry_delay_seconds=exponential_backoff(RETRY_DELAY_SECONDS)
    )
    with tracker.stage_run(stage.name, parent_run_id, stage.key_digest()) as run_id:
        return attempts(stage, whole, tracker, run_id, request.stage_timeout_seconds)


def is_worth_retrying(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt is likely to help: not after a user error or a time-out."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and not isinstance(error, StageTimeoutError)


# Called directly, never submitted: cancelling reaches the `finally` of `run_command` only in the flow's own thread.
# No cache: manifests alone decide what is complete.
@task(
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=is_worth_retrying,
    retry_jitter_factor=RETRY_JITTER,
)
def run_stage(
    stage: Stage, whole: WholeRecipe, tracker: Tracker, run_id: str, timeout_seconds: float | None
) -> StageOutcome:
    """One attempt at a stage: skip it if it is complete, else run its command.

    Raises:
        InputError: the stage's command rejected its input.
        StageError: the stage's command ended and the stage is not complete.
    """
    logger = get_run_logger()
    narrator = Narrator(stage.name, logger)
    workspace = whole.run.workspace
    reason = stage.difference() or ("a rebuild was requested" if stage.restart else None)
    if reason is None:
        seconds = timings.earlier_seconds(workspace, stage.name, stage.manifests())
        took = f" (took {shown_seconds(seconds)} before)" if seconds is not None else ""
        narrator.event(f"skipped: complete{took}")
        tracker.log_stage(run_id, stage.manifests(), None)
    else:
        narrator.event(f"building: {textwrap.shorten(reason, REASON_WIDTH, placeholder=' ...')}")
        progress = StageProgress(whole.run.name, stage.name, logger)

        def take(line: str) -> None:
            narrator.output(line)
            progress.observe(line)

        begin = time.monotonic()
        environment = stage.environment() | tracker.child_environment(run_id)
        earlier = stage.marks()

        def difference() -> str | None:
            if stage.restart and any(mark in earlier for mark in stage.marks()):
                return "a rebuild was requested, but the earlier result is still in place"
            return stage.difference()

        def once() -> None:
            run_command(stage.name, stage.command(), difference, take, environment, timeout_seconds)

        run_requeued(once, narrator.event)
        seconds = time.monotonic() - begin
        progress.complete()
        if stage.is_timed:
            timings.record_seconds(workspace, stage.name, stage.manifests(), seconds)
        tracker.log_stage(run_id, stage.manifests(), seconds)
        narrator.event(f"done in {shown_seconds(seconds)}")
    return StageOutcome(
        stage=stage.name,
        built=reason is not None,
        seconds=seconds,
        mlflow_run_id=run_id,
        directories={output.name: output.directory for output in stage.outputs},
    )
