"""A training of a study as a task of Prefect: its name, its state, and what is not a problem of the run."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext

from flows import study
from flows.comparison.results import RunResult
from flows.comparison.study_file import Run

RUN = Run("masked phases=[{max_seq_length = 64}]", 1, ())
"""As a grid over tables names its variants; Prefect would take the braces for a field."""


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("problem", "state"), [(None, "COMPLETED"), ("no data", "FAILED")])
def test_a_task_has_the_name_and_the_state_of_its_run(problem: str | None, state: str) -> None:
    seen: list[Any] = []

    @flow
    def trial() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        result = study._as_task(RUN, lambda: RunResult(RUN, problem=problem))
        seen.extend([result, context.flow_run.id])

    trial()
    result, flow_run_id = seen
    assert (result.run, result.problem) == (RUN, problem)
    with get_client(sync_client=True) as client:
        own = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        (task_run,) = client.read_task_runs(flow_run_filter=own)
    assert task_run.name == RUN.label
    assert task_run.state is not None
    assert task_run.state.type.value == state


@pytest.mark.usefixtures("prefect_server")
def test_an_error_of_the_code_is_raised_as_it_is() -> None:
    def broken() -> RunResult:
        raise KeyError("a bug")

    @flow
    def trial() -> None:
        study._as_task(RUN, broken)

    with pytest.raises(KeyError, match="a bug"):
        trial()
