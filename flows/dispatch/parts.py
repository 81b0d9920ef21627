"""Parts of a run on other work pools: sub-flows, and the trials of fine-tuning.

A part is a run of a deployment with the same recipe, nested in the same MLflow run. Afterwards the calling flow
collects it as it would an earlier result: every stage is complete, so it is skipped, and its models are registered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from prefect import Flow, get_client, get_run_logger
from prefect.context import FlowRunContext

from flows.console.narration import Narrator
from flows.dispatch.child_runs import Part, PartError, run_parts
from flows.dispatch.pools import require_deployment
from flows.dispatch.trials import in_order, trials_of
from flows.parameters.forms import SectionForm
from flows.parameters.requests import BaseRequest, RunRequest, TrialRequest
from flows.running import timings
from flows.running.flow import RunningFlow
from flows.running.outcomes import FlowOutcome, StageOutcome
from flows.running.plan import Stage, StageOutput

TRIAL_FLOW = "trial"


def run_part(
    flow: Flow[[Any], FlowOutcome], request: RunRequest, deployment: str | None, stages: Callable[[], Sequence[Stage]]
) -> FlowOutcome:
    """Call a flow, or run a deployment of it and collect its results.

    Args:
        flow: the part.
        request: of the calling flow, with its MLflow run.
        deployment: name of the flow's deployment; None calls the flow in this process.
        stages: of the part, called before and after.

    Raises:
        InputError: the deployment is missing, or cannot run next to this run.
        PartError: the run of the deployment has not completed.
    """
    if deployment is None:
        return flow(request)
    own = request_of_part(request, get_type_hints(flow.fn)["request"])
    before = {stage.name: stage.marks() for stage in stages()}
    _run([Part(flow.name, f"{flow.name}/{deployment}", own)], flow.name, request)
    _require_complete(flow.name, [output for stage in stages() for output in stage.outputs])
    after = {stage.name: stage.marks() for stage in stages()}
    collected = flow(request.model_copy(update={"rebuild": False, "trials_deployment": None}))
    built = [
        outcome.model_copy(update={"built": before.get(outcome.stage) != after.get(outcome.stage)})
        for outcome in collected.stages
    ]
    return FlowOutcome(stages=tuple(built), models=collected.models)


def build_by_trials(run: RunningFlow, stage: Stage, deployment: str | None) -> StageOutcome:
    """Build a stage of fine-tuning or a sweep: here, or each incomplete trial as a run of a deployment.

    A trial that fails leaves the others, but the stage then fails.

    Raises:
        InputError: the deployment is missing, or an input is not valid.
        PartError: trials have failed.
        StageError: the stage's command ended and the stage is not complete.
    """
    if deployment is None:
        return run.build(stage)
    begin, rebuilds = time.monotonic(), run.request.rebuild and stage.is_restartable
    own = {**request_of_part(run.request, TrialRequest), "parent_run_id": run.run_id}
    started = 0
    for group in in_order(run.whole, trials_of(stage)):
        due = [trial for trial in group if rebuilds or trial.difference() is not None]
        parts = [Part(trial.name, f"{TRIAL_FLOW}/{deployment}", {**own, TRIAL_FLOW: trial.name}) for trial in due]
        started += len(parts)
        _run(parts, stage.name, run.request)
        _require_complete(stage.name, group)
    outcome = replace(run, request=run.request.model_copy(update={"rebuild": False})).build(stage)
    if not started:
        return outcome
    seconds = time.monotonic() - begin
    timings.record_seconds(run.whole.run.workspace, stage.name, stage.manifests(), seconds)
    return outcome.model_copy(update={"built": True, "seconds": seconds})


def require_deployments(request: RunRequest) -> None:
    """Check the deployments of all parts, before the first one starts.

    Raises:
        InputError: one does not exist, or its pool has no place next to this run.
    """
    names = {
        "preprocess": request.preprocess_deployment,
        "pretrain": request.pretrain_deployment,
        "finetune": request.finetune_deployment,
        TRIAL_FLOW: request.trials_deployment,
    }
    deployments = [f"{flow}/{name}" for flow, name in names.items() if name is not None]
    if not deployments:
        return
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            require_deployment(client, deployment, context.flow_run)


def request_of_part(request: BaseRequest, model: type[BaseRequest]) -> dict[str, Any]:
    """The request of another flow for the same recipe, as JSON values; all settings are overrides."""
    values = request.model_dump(mode="json", exclude_defaults=True)
    kept = {
        name: value
        for name, value in values.items()
        if name in model.model_fields and name != "workspace" and not isinstance(getattr(request, name), SectionForm)
    }
    # A form that only the calling flow has decides the stages' keys too.
    return {**kept, "overrides": list(request.all_overrides())}


def _run(parts: list[Part], name: str, request: BaseRequest) -> None:
    narrator = Narrator(name, get_run_logger())
    if problems := run_parts(parts, narrator.event, attempts=1 + request.stage_retries):
        raise PartError(problems, len(parts))


def _require_complete(name: str, outputs: Sequence[StageOutput]) -> None:
    """Raise unless the outputs are complete for this process too, which would otherwise build them here."""
    problems = {output.name: reason for output in outputs if (reason := output.difference()) is not None}
    if problems:
        first, reason = next(iter(problems.items()))
        cause = "its worker may have another workspace directory, or another version of the recipe"
        raise PartError({name: f"the run has completed, but {first} is not complete here ({reason}); {cause}"}, 1)
