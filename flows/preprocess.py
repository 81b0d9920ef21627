"""Flow: raw text to documents, vocabulary and examples."""

from __future__ import annotations

from prefect import flow

from flows.console.run_names import run_name
from flows.parameters.requests import PreprocessRequest
from flows.report.prefect_artifacts import tell_corpus
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.failures import tell_crash, tell_failure
from flows.running.outcomes import FlowOutcome
from flows.running.stage_run import build_stage
from flows.tracking.runs import Tracker


@flow(
    name="preprocess",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[tell_failure],
    on_crashed=[tell_crash],
)
def preprocess(request: PreprocessRequest) -> FlowOutcome:
    """Bring documents, vocabulary and examples up to date.

    Raises:
        InputError: a mistake in the recipe or in what it names.
        StageError: a stage's command failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("preprocess", whole, request.parent_run_id) as run_id:
        plan = stages.preprocessing_stages(whole)
        built = tuple(build_stage(stage, request, whole, tracker, run_id) for stage in plan)
        outcome = FlowOutcome(stages=built)
        tell_corpus(whole, outcome)
        return outcome


if __name__ == "__main__":
    raise SystemExit(run_as_command(preprocess))
