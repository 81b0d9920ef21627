"""Flows: from a pre-trained encoder to registered, fine-tuned models, and one trial of them."""

from __future__ import annotations

from flows.dispatch.child_runs import cancel_children_of_crashed
from flows.dispatch.parts import TRIAL_FLOW, build_by_trials
from flows.dispatch.trials import trial_stage, tuning_stages, with_best_trials
from flows.parameters.requests import FinetuneRequest, TrialRequest
from flows.registry.registration import register_finetuned
from flows.report.prefect_artifacts import tell_scores
from flows.running.command import run_as_command
from flows.running.final_scores import final_scores
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome
from pipelines.commands.process_exit import run_and_leave_in_order


@clozeworks_flow("finetune", on_crashed=[cancel_children_of_crashed])
def finetune(request: FinetuneRequest) -> FlowOutcome:
    """Fine-tune the encoder on each task of the recipe, sweep if it says so, and register the models.

    Raises:
        InputError: the recipe is not valid, or the encoder or a task's data are missing.
        StageError: training failed.
        PartError: trials that run on another deployment failed.
    """
    with running(request) as run:
        built = FlowOutcome()
        for stage in tuning_stages(run.whole):
            outcome = with_best_trials(build_by_trials(run, stage, request.trials_deployment))
            built += FlowOutcome(stages=(outcome,), models=register_finetuned(run.whole, run.tracker, outcome))
        run.tracker.log_metrics(run.run_id, final_scores(built))
        tell_scores(run.whole, built)
        return built


@clozeworks_flow(TRIAL_FLOW)
def trial(request: TrialRequest) -> FlowOutcome:
    """Train one trial of fine-tuning or of a sweep; the flow `finetune` starts a run for each, and registers models.

    Raises:
        InputError: the recipe is not valid or has no such trial, or the encoder or the task's data are missing.
        StageError: training failed.
    """
    with running(request) as run:
        return FlowOutcome(stages=(run.build(trial_stage(run.whole, request.trial)),))


if __name__ == "__main__":
    run_and_leave_in_order(lambda: run_as_command(finetune))
