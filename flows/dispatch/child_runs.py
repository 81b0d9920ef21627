"""Runs of other deployments as children of the calling flow: started, followed to their end, cancelled with it.

Success of a part is decided by its caller from manifests, as for a stage; a state on the server only ends the wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import httpx
from prefect import Flow, State, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectException, PrefectHTTPStatusError
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from flows.dispatch.pools import reason_to_wait, require_deployment
from pipelines.contract.errors import InputError

ItemT = TypeVar("ItemT")

POLL_SECONDS = 2.0
_FIRST_POLL_SECONDS, _POLL_SHARE = 0.25, 0.05
"""A wait is asked about after this share of its length so far, so that a short part is not waited for in vain."""
LATE_SECONDS = 60.0
"""After this time a line shows why a run has not started."""
SILENT_SERVER_SECONDS = 900.0
"""How long a server may not answer: its children continue meanwhile, and a restart takes minutes at most."""
GRACE_SECONDS = 25.0
"""Wait for the end of cancelled children: training has 20 s for a checkpoint, and Prefect kills this flow after 30."""

_RUNS_PER_REQUEST = 200
_CANCELLED = "The run that started this one has ended."


class PartError(RuntimeError):
    """Parts of a run, on other deployments, have not completed; the message has a line for each."""

    def __init__(self, problems: Mapping[str, str], of: int):
        self.problems = dict(problems)
        lines = [f"{label}: {problem}" for label, problem in problems.items()]
        left = of - len(problems)
        others = f"; the other {left} have completed and are kept" if left else ""
        super().__init__("\n".join([f"{len(problems)} of {of} parts have failed{others}", *lines]))


@dataclass(frozen=True)
class Part:
    """A part of a run. label: in log lines. deployment: `FLOW/NAME`. request: the flow's parameter, as JSON values."""

    label: str
    deployment: str
    request: Mapping[str, Any]


@dataclass
class _Child:
    part: Part
    attempts_left: int
    state: str = ""
    started: float = 0.0


def run_parts(parts: Sequence[Part], say: Callable[[str], None], attempts: int = 1) -> dict[str, str]:
    """Run each part as a child of the calling flow, all at once, and wait until every one has ended.

    A part that fails leaves the others. If the calling flow is cancelled or fails, its children are cancelled.

    Args:
        parts: to run; pools limit how many run at a time.
        say: called with each line to log.
        attempts: of a part whose run crashes, such as by the loss of its machine; a failed one is not repeated, for its
            own retries have been used.

    Returns:
        Problems by label; empty if all have completed.

    Raises:
        InputError: a deployment is missing or rejects its request, or its pool has no place next to this run.
    """
    own = _own_run()
    with get_client(sync_client=True) as client:
        for name in dict.fromkeys(part.deployment for part in parts):
            require_deployment(client, name, own)
    children: dict[UUID, _Child] = {}
    problems: dict[str, str] = {}
    told = set[str]()
    with _cancelled_with_this_run(own, say):
        for part in parts:
            children[_start(part, own, say)] = _Child(part, attempts - 1, started=time.monotonic())
        while children:
            time.sleep(_pause_seconds(list(children.values())))
            found = _asked_patiently(partial(_runs, ids=list(children)), say)
            for run in found:
                child = children[run.id]
                _say_change(child, run, say)
                if run.state is None or not run.state.is_final():
                    continue
                del children[run.id]
                if run.state.is_crashed() and child.attempts_left:
                    say(f"{child.part.label}: crashed; it is started again")
                    again = _start(child.part, own, say)
                    children[again] = _Child(child.part, child.attempts_left - 1, started=time.monotonic())
                elif not run.state.is_completed():
                    problems[child.part.label] = f"{run.state.message or run.state.name}{_page(run)}"
            late = [run for run in found if run.id in children and _is_late(children[run.id], run)]
            for line in _asked_patiently(partial(_waits, late=late), say):
                if line not in told:
                    told.add(line)
                    say(line)
    return problems


def cancel_children_of_crashed(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook on a crash: the process that followed the children is gone, so they are cancelled here."""
    del flow, state
    with get_client(sync_client=True) as client:
        _cancel(client, flow_run.id)


def unfinished_children(client: SyncPrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    """Runs of deployments that a run, or a flow called within it, has started and that have not ended."""
    found, level = list[FlowRun](), [flow_run_id]
    while level:
        within = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=level))
        runs = _pages(client, within)
        found += [run for run in runs if run.deployment_id and not (run.state and run.state.is_final())]
        # Children cancel their own.
        level = [run.id for run in runs if not run.deployment_id]
    return found


def _own_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def _start(part: Part, own: FlowRun, say: Callable[[str], None]) -> UUID:
    name, key = f"{own.name}: {part.label}", uuid4().hex
    parameters = {"request": dict(part.request)}

    def create(_: SyncPrefectClient) -> list[FlowRun]:
        try:
            # Outside an event loop it returns the run itself. The key makes a request that is repeated start one run.
            created = run_deployment(
                part.deployment, parameters=parameters, flow_run_name=name, timeout=0, idempotency_key=key
            )
            return [cast(FlowRun, created)]
        except PrefectHTTPStatusError as error:
            if not error.response.is_client_error:
                raise
            raise InputError(
                f"{part.deployment}: rejected by the server: {' '.join(error.response.text.split())}"
            ) from error

    (run,) = _asked_patiently(create, say)
    return run.id


@contextmanager
def _cancelled_with_this_run(own: FlowRun, say: Callable[[str], None]) -> Iterator[None]:
    """Cancel the children if the block ends by an exception, such as Prefect's at SIGTERM; wait for their end."""
    try:
        yield
    except BaseException:
        try:
            with get_client(sync_client=True) as client:
                left = _cancel(client, own.id)
                if left:
                    say(f"cancels {len(left)} runs that it has started")
                deadline = time.monotonic() + GRACE_SECONDS
                while left and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS / 2)
                    left = unfinished_children(client, own.id)
        except (httpx.HTTPError, PrefectException) as error:
            say(
                f"Prefect's server does not answer ({type(error).__name__}); runs started by this one end by themselves"
            )
        raise


def _pause_seconds(children: Sequence[_Child]) -> float:
    """Until the server is asked again: less while a part is young."""
    youngest_seconds = time.monotonic() - max(child.started for child in children)
    return min(max(_FIRST_POLL_SECONDS, _POLL_SHARE * youngest_seconds), POLL_SECONDS)


def _cancel(client: SyncPrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    left = unfinished_children(client, flow_run_id)
    for run in left:
        client.set_flow_run_state(run.id, Cancelling(message=_CANCELLED))
    return left


def _runs(client: SyncPrefectClient, ids: list[UUID]) -> list[FlowRun]:
    found: list[FlowRun] = []
    for begin in range(0, len(ids), _RUNS_PER_REQUEST):
        some = FlowRunFilter(id=FlowRunFilterId(any_=ids[begin : begin + _RUNS_PER_REQUEST]))
        found += client.read_flow_runs(flow_run_filter=some, limit=_RUNS_PER_REQUEST)
    return found


def _pages(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_RUNS_PER_REQUEST, offset=len(found))
        found += page
        if len(page) < _RUNS_PER_REQUEST:
            return found


def _asked_patiently(ask: Callable[[SyncPrefectClient], list[ItemT]], say: Callable[[str], None]) -> list[ItemT]:
    """An answer of the server; while it does not answer, the children continue, and so does the wait.

    Raises:
        RuntimeError: it has not answered for too long.
    """
    begin, is_told = time.monotonic(), False
    while True:
        try:
            with get_client(sync_client=True) as client:
                found = ask(client)
        except (httpx.HTTPError, PrefectException) as error:
            silence = time.monotonic() - begin
            if silence > SILENT_SERVER_SECONDS:
                raise RuntimeError(f"Prefect's server has not answered for {silence:.0f} s") from error
            if not is_told:
                say(f"Prefect's server does not answer ({type(error).__name__}); waiting for it")
            is_told = True
            time.sleep(POLL_SECONDS)
            continue
        if is_told:
            say("Prefect's server answers again")
        return found


def _say_change(child: _Child, run: FlowRun, say: Callable[[str], None]) -> None:
    name = run.state.name if run.state and run.state.name else ""
    if name == child.state:
        return
    child.state = name
    if run.state is not None and (run.state.is_running() or run.state.is_final()):
        say(f"{child.part.label}: {name.lower()} on {child.part.deployment}{_page(run)}")


def _page(run: FlowRun) -> str:
    # None unless a server with pages is configured.
    address = url_for("flow-run", run.id)
    return f", {address}" if address else ""


def _is_late(child: _Child, run: FlowRun) -> bool:
    waits = run.state is not None and (run.state.is_scheduled() or run.state.is_pending())
    return waits and time.monotonic() - child.started > LATE_SECONDS


def _waits(client: SyncPrefectClient, late: Sequence[FlowRun]) -> list[str]:
    """One line for each pool with late runs: those that it has not given to a worker, and those that are starting."""
    waiting = [run.work_pool_name for run in late if run.state is not None and run.state.is_scheduled()]
    starting = [run.work_pool_name for run in late if run.state is not None and run.state.is_pending()]
    return [
        *(f"runs wait: {reason_to_wait(client, pool)}" for pool in dict.fromkeys(waiting) if pool),
        *(f"runs wait: a worker of pool {pool} is starting them" for pool in dict.fromkeys(starting) if pool),
    ]
