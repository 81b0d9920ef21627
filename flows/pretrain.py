"""Flow: examples to a registered, pre-trained encoder."""

from __future__ import annotations

from prefect import flow

from flows import stages
from flows.command import run_as_command
from flows.registry import register_encoder
from flows.stage_run import FlowOutcome, build_stage
from flows.tracking import Tracker
from flows.whole_recipe import RunRequest


@flow(name="pretrain", flow_run_name="pretrain {request.recipe}", persist_result=False)
def pretrain(request: RunRequest) -> FlowOutcome:
    """Pre-train the encoder and register it.

    Raises:
        InputError: a mistake in the recipe, or examples are missing.
        StageError: training failed.
    """
    whole = request.read()
    tracker = Tracker(whole)
    with tracker.flow_run("pretrain", whole, request.parent_run_id) as run_id:
        outcome = build_stage(stages.pretraining_stage(whole), whole, tracker, run_id)
        return FlowOutcome(stages=(outcome,), models=(register_encoder(whole, tracker, outcome),))


if __name__ == "__main__":
    raise SystemExit(run_as_command(pretrain))
