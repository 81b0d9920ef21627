"""Flow: examples to a registered, pre-trained encoder."""

from __future__ import annotations

from prefect import flow

from flows.console.run_names import run_name
from flows.parameters.requests import PretrainRequest
from flows.registry.registration import register_encoder
from flows.report.prefect_artifacts import tell_pretraining
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.failures import tell_crash, tell_failure
from flows.running.final_scores import final_scores
from flows.running.outcomes import FlowOutcome
from flows.running.stage_run import build_stage
from flows.tracking.runs import Tracker


@flow(
    name="pretrain",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[tell_failure],
    on_crashed=[tell_crash],
)
def pretrain(request: PretrainRequest) -> FlowOutcome:
    """Pre-train the encoder and register it.

    Raises:
        InputError: a mistake in the recipe, or examples are missing.
        StageError: training failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("pretrain", whole, request.parent_run_id) as run_id:
        built = build_stage(stages.pretraining_stage(whole), request, whole, tracker, run_id)
        outcome = FlowOutcome(stages=(built,), models=(register_encoder(whole, tracker, built),))
        tracker.log_metrics(run_id, final_scores(outcome))
        tell_pretraining(whole, outcome)
        return outcome


if __name__ == "__main__":
    raise SystemExit(run_as_command(pretrain))
