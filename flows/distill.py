"""Flow: a pre-trained encoder to a registered one of half its depth."""

from __future__ import annotations

from prefect import flow

from flows.console.run_names import run_name
from flows.parameters.requests import DistillRequest
from flows.registry.registration import register_distilled
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.failures import tell_crash, tell_failure
from flows.running.final_scores import final_scores
from flows.running.outcomes import FlowOutcome
from flows.running.stage_run import build_stage
from flows.tracking.runs import Tracker


@flow(
    name="distill",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[tell_failure],
    on_crashed=[tell_crash],
)
def distill(request: DistillRequest) -> FlowOutcome:
    """Distil the encoder by the recipe's section [distillation], and register the student.

    Raises:
        InputError: a mistake in the recipe, or examples or the teacher are missing.
        StageError: training failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("distill", whole, request.parent_run_id) as run_id:
        built = build_stage(stages.distillation_stage(whole), request, whole, tracker, run_id)
        outcome = FlowOutcome(stages=(built,), models=(register_distilled(whole, tracker, built),))
        tracker.log_metrics(run_id, final_scores(outcome))
        return outcome


if __name__ == "__main__":
    raise SystemExit(run_as_command(distill))
