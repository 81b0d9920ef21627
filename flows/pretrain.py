"""Flow: from examples to a registered, pre-trained encoder."""

from __future__ import annotations

from flows.parameters.requests import PretrainRequest
from flows.registry.registration import register_encoder
from flows.report.prefect_artifacts import tell_pretraining
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.final_scores import final_scores
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome
from pipelines.commands.process_exit import run_and_leave_in_order


@clozeworks_flow("pretrain")
def pretrain(request: PretrainRequest) -> FlowOutcome:
    """Pre-train the encoder and register it.

    Raises:
        InputError: the recipe is not valid, or examples are missing.
        StageError: training failed.
    """
    with running(request) as run:
        built = run.build(stages.pretraining_stage(run.whole, request.continue_finished))
        outcome = FlowOutcome(stages=(built,), models=register_encoder(run.whole, run.tracker, built))
        run.tracker.log_metrics(run.run_id, final_scores(outcome))
        tell_pretraining(run.whole, outcome)
        return outcome


if __name__ == "__main__":
    run_and_leave_in_order(lambda: run_as_command(pretrain))
