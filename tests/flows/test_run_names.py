"""Names of flow runs: from the recipe, or as entered on the page."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.context import FlowRunContext

from flows.console.run_names import run_name
from flows.end_to_end import end_to_end
from flows.parameters.requests import RunRequest


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (None, "end-to-end recipe.toml"),
        (SimpleNamespace(name="wise-otter", deployment_id=None, auto_scheduled=False), "end-to-end recipe.toml"),
        (SimpleNamespace(name="wise-otter", deployment_id=uuid4(), auto_scheduled=True), "end-to-end recipe.toml"),
        (SimpleNamespace(name="before the move", deployment_id=uuid4(), auto_scheduled=False), "before the move"),
    ],
)
def test_the_name_of_a_run(run: object, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"request": RunRequest(recipe="recipe.toml")}
    context = SimpleNamespace(flow=end_to_end, flow_run=run, parameters=parameters)
    monkeypatch.setattr(FlowRunContext, "get", classmethod(lambda _: context))
    assert run_name() == expected


@pytest.mark.usefixtures("prefect_server", "stand_ins")
def test_prefect_calls_a_run_so(write_recipe: object) -> None:
    from prefect import get_client

    assert callable(write_recipe)
    recipe = write_recipe(("passes = 2", "passes = 0"))
    state = end_to_end(RunRequest(recipe=recipe), return_state=True)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == f"end-to-end {recipe}"
