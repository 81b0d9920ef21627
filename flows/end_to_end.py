"""Flow: raw text to registered models and a report, in one command."""

from __future__ import annotations

from prefect import flow
from rich.console import Console

from flows.console.run_names import run_name
from flows.finetune import finetune
from flows.parameters.requests import RunRequest
from flows.preprocess import preprocess
from flows.pretrain import pretrain
from flows.report.facts import gather
from flows.report.files import MARKDOWN_NAME, show, write_report
from flows.report.prefect_artifacts import tell_report
from flows.running import plan as stages
from flows.running.command import run_as_command
from flows.running.failures import tell_crash, tell_failure
from flows.running.outcomes import FlowOutcome
from flows.servers.local_server import private_home
from flows.tracking.runs import Tracker


@flow(
    name="end-to-end",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[tell_failure],
    on_crashed=[tell_crash],
)
def end_to_end(request: RunRequest) -> FlowOutcome:
    """Preprocess, pre-train, fine-tune, register and report; what is complete already is skipped.

    Raises:
        InputError: a mistake in the recipe or in what it names.
        StageError: a stage's command failed.
    """
    whole = request.read()
    stages.require_task_data(whole)
    tracker = Tracker(whole)
    with tracker.flow_run("end-to-end", whole, request.parent_run_id) as run_id:
        nested = request.model_copy(update={"parent_run_id": run_id})
        outcome = preprocess(nested) + pretrain(nested) + finetune(nested)
        facts = gather(whole, outcome, tracker.uri, private_home())
        written = write_report(whole, facts)
        tracker.log_texts(run_id, written, "report")
        tell_report(whole, written[MARKDOWN_NAME], tracker.uri, tracker.experiment_id, run_id)
        show(facts, Console())
        return outcome


if __name__ == "__main__":
    raise SystemExit(run_as_command(end_to_end))
