"""Flow: from raw text to registered models and a report, in one command."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from flows.dispatch.child_runs import cancel_children_of_crashed
from flows.dispatch.parts import require_deployments, run_part
from flows.dispatch.trials import tuning_stages
from flows.finetune import finetune
from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.preprocess import preprocess
from flows.pretrain import pretrain
from flows.report.facts import gather
from flows.report.files import MARKDOWN_NAME, show, write_report
from flows.report.prefect_artifacts import tell_report
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.flow import clozeworks_flow, running
from flows.running.outcomes import FlowOutcome
from flows.servers.local_server import private_home
from pipelines.commands.process_exit import run_and_leave_in_order


@clozeworks_flow("end-to-end", on_crashed=[cancel_children_of_crashed])
def end_to_end(request: RunRequest) -> FlowOutcome:
    """Preprocess, pre-train, fine-tune, register and report. Completed stages are skipped.

    Raises:
        InputError: the recipe, or an input that it names, is not valid.
        StageError: a stage's command failed.
        PartError: a part that runs on another deployment failed.
    """
    with running(request, check=partial(_require_inputs, request=request)) as run:
        nested, whole = request.model_copy(update={"parent_run_id": run.run_id}), run.whole
        outcome = (
            run_part(preprocess, nested, request.preprocess_deployment, lambda: stages.preprocessing_stages(whole))
            + run_part(pretrain, nested, request.pretrain_deployment, lambda: [stages.pretraining_stage(whole)])
            + run_part(finetune, nested, request.finetune_deployment, lambda: tuning_stages(whole))
        )
        facts = gather(run.whole, outcome, run.tracker.uri, private_home())
        written = write_report(run.whole, facts)
        run.tracker.log_texts(run.run_id, written, "report")
        tell_report(run.whole, written[MARKDOWN_NAME], run.tracker.uri, run.tracker.experiment_id, run.run_id)
        show(facts, Console())
        return outcome


def _require_inputs(whole: WholeRecipe, request: RunRequest) -> None:
    require_deployments(request)
    stages.require_initial_encoder(whole)
    stages.require_task_data(whole)
    if request.continue_finished:
        stages.require_finished_pretraining(whole)
    tunes_here = request.finetune_deployment is None and request.trials_deployment is None
    parts = (
        (stages.preprocessing_stages(whole), request.preprocess_deployment is None),
        ([stages.pretraining_stage(whole)], request.pretrain_deployment is None),
        (stages.finetuning_stages(whole), tunes_here),
    )
    stages.require_nodes(whole, parts, request.rebuild)


if __name__ == "__main__":
    run_and_leave_in_order(lambda: run_as_command(end_to_end))
