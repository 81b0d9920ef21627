"""Flow: from a pre-trained encoder to registered, fine-tuned models."""

from __future__ import annotations

from flows.parameters.requests import FinetuneRequest
from flows.registry.registration import register_finetuned
from flows.report.prefect_artifacts import tell_scores
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.final_scores import final_scores
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome


@clozeworks_flow("finetune")
def finetune(request: FinetuneRequest) -> FlowOutcome:
    """Fine-tune the encoder on each task of the recipe, and register the models.

    Raises:
        InputError: the recipe is not valid, or the encoder or a task's data are missing.
        StageError: training failed.
    """
    with running(request) as run:
        built = FlowOutcome()
        for stage in stages.finetuning_stages(run.whole):
            outcome = run.build(stage)
            built += FlowOutcome(stages=(outcome,), models=register_finetuned(run.whole, run.tracker, outcome))
        run.tracker.log_metrics(run.run_id, final_scores(built))
        tell_scores(run.whole, built)
        return built


if __name__ == "__main__":
    raise SystemExit(run_as_command(finetune))
