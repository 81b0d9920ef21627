"""Flow: a pre-trained encoder to registered, fine-tuned models."""

from __future__ import annotations

from prefect import flow

from flows.console.run_names import run_name
from flows.parameters.requests import FinetuneRequest
from flows.registry.registration import register_finetuned
from flows.report.prefect_artifacts import tell_scores
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.failures import tell_crash, tell_failure
from flows.running.final_scores import final_scores
from flows.running.outcomes import FlowOutcome
from flows.running.stage_run import build_stage
from flows.tracking.runs import Tracker


@flow(
    name="finetune",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[tell_failure],
    on_crashed=[tell_crash],
)
def finetune(request: FinetuneRequest) -> FlowOutcome:
    """Fine-tune the encoder on each task of the recipe, and register what came of it.

    Raises:
        InputError: a mistake in the recipe, or the encoder or a task's data are missing.
        StageError: training failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("finetune", whole, request.parent_run_id) as run_id:
        built = FlowOutcome()
        for stage in stages.finetuning_stages(whole):
            outcome = build_stage(stage, request, whole, tracker, run_id)
            built += FlowOutcome(stages=(outcome,), models=register_finetuned(whole, tracker, outcome))
        tracker.log_metrics(run_id, final_scores(built))
        tell_scores(whole, built)
        return built


if __name__ == "__main__":
    raise SystemExit(run_as_command(finetune))
