"""Names of flow runs on Prefect's page."""

from __future__ import annotations

from prefect.context import FlowRunContext


def run_name() -> str:
    """The flow and its recipe or study; a run that a user started from a deployment keeps its name.

    That name was entered by the user or suggested by the page. Runs of a schedule have neither.
    """
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow is not None
    assert context.parameters is not None
    run = context.flow_run
    if run is not None and run.deployment_id is not None and not run.auto_scheduled:
        return str(run.name)
    return f"{context.flow.name} {context.parameters['request'].file}"
