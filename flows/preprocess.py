"""Flow: raw text to documents, vocabulary and examples."""

from __future__ import annotations

from prefect import flow

from flows import stages
from flows.command import run_as_command
from flows.stage_run import FlowOutcome, build_stage
from flows.tracking import Tracker
from flows.whole_recipe import RunRequest


@flow(name="preprocess", flow_run_name="preprocess {request.recipe}", persist_result=False)
def preprocess(request: RunRequest) -> FlowOutcome:
    """Bring documents, vocabulary and examples up to date.

    Raises:
        InputError: a mistake in the recipe or in what it names.
        StageError: a stage's command failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("preprocess", whole, request.parent_run_id) as run_id:
        plan = stages.preprocessing_stages(whole)
        return FlowOutcome(stages=tuple(build_stage(stage, whole, tracker, run_id) for stage in plan))


if __name__ == "__main__":
    raise SystemExit(run_as_command(preprocess))
