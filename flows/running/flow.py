"""Common parts of all flows: how Prefect runs them, and the recipe and the MLflow run that they start with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow
from prefect.context import FlowRunContext
from prefect.flows import FlowStateHook

from flows.console.run_names import run_name
from flows.parameters.requests import BaseRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.failures import tell_crash, tell_failure
from flows.running.outcomes import StageOutcome
from flows.running.parent_watch import watching_parent
from flows.running.plan import Stage
from flows.running.stage_run import build_stage
from flows.tracking.runs import Tracker

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


def clozeworks_flow(
    name: str, on_crashed: Sequence[FlowStateHook[..., Any]] = ()
) -> Callable[[Callable[ParametersT, ResultT]], Flow[ParametersT, ResultT]]:
    """Decorator: turn a function of a request into a flow of this name; `on_crashed` are further hooks."""
    return flow(
        name=name,
        flow_run_name=run_name,
        persist_result=False,
        on_failure=[tell_failure],
        on_crashed=[*on_crashed, tell_crash],
    )


@dataclass(frozen=True)
class RunningFlow:
    """State of a flow while it runs. run_id: of the MLflow run in which the runs of its stages are nested."""

    request: BaseRequest
    whole: WholeRecipe
    tracker: Tracker
    run_id: str

    def build(self, stage: Stage) -> StageOutcome:
        """Build one stage unless it is complete.

        Raises:
            InputError: the stage's command refused its input.
            StageError: the stage's command ended and the stage is not complete.
        """
        return build_stage(stage, self.request, self.whole, self.tracker, self.run_id)


@contextmanager
def running(request: BaseRequest, check: Callable[[WholeRecipe], None] | None = None) -> Iterator[RunningFlow]:
    """Read the request's recipe and open the MLflow run of the calling flow.

    Args:
        request: the flow's parameter.
        check: called with the recipe before anything is logged to MLflow.

    Raises:
        InputError: the recipe is not valid, or `check` raises it.
    """
    whole = request.read()
    if check is not None:
        check(whole)
    tracker, context = Tracker(whole), FlowRunContext.get()
    assert context is not None
    assert context.flow is not None
    with watching_parent(), tracker.flow_run(context.flow.name, whole, request.parent_run_id) as run_id:
        yield RunningFlow(request, whole, tracker, run_id)
