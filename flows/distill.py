"""Flow: from a pre-trained encoder to a registered one of half its depth."""

from __future__ import annotations

from flows.parameters.requests import DistillRequest
from flows.registry.registration import register_distilled
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.final_scores import final_scores
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome
from pipelines.commands.process_exit import run_and_leave_in_order


@clozeworks_flow("distill")
def distill(request: DistillRequest) -> FlowOutcome:
    """Distil the encoder as the recipe's section [distillation] says, and register the student.

    Raises:
        InputError: the recipe is not valid, or the examples or the teacher are missing.
        StageError: training failed.
    """
    with running(request) as run:
        built = run.build(stages.distillation_stage(run.whole))
        outcome = FlowOutcome(stages=(built,), models=register_distilled(run.whole, run.tracker, built))
        run.tracker.log_metrics(run.run_id, final_scores(outcome))
        return outcome


if __name__ == "__main__":
    run_and_leave_in_order(lambda: run_as_command(distill))
