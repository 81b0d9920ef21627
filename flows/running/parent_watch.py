"""A child run ends if the run that started it has: the machine of that one may be lost, so that nothing cancels it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.states import Cancelling

WATCH_SECONDS = 30.0
_ORPHANED = "The run that started this one has ended."


@contextmanager
def watching_parent() -> Iterator[None]:
    """While the block runs, have the calling flow cancelled once a run above it has ended.

    Does nothing for a run that no other one has started, nor for a flow that runs in the process of its caller.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    if run is None or run.deployment_id is None or run.parent_task_run_id is None:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, stop), name="parent-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def has_ended_above(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Has any of the runs that lead to this one ended? A flow called within a process may stay open without it."""
    task_run_id = run.parent_task_run_id
    while task_run_id is not None:
        above: UUID | None = client.read_task_run(task_run_id).flow_run_id
        if above is None:
            return False
        parent = client.read_flow_run(above)
        if parent.state is not None and parent.state.is_final():
            return True
        task_run_id = parent.parent_task_run_id
    return False


def _watch(run: FlowRun, stop: threading.Event) -> None:
    while not stop.wait(WATCH_SECONDS):
        try:
            with get_client(sync_client=True) as client:
                if has_ended_above(client, run):
                    # The worker then ends this process as for a user who cancels it: SIGTERM, a checkpoint.
                    client.set_flow_run_state(run.id, Cancelling(message=_ORPHANED))
                    return
        except (httpx.HTTPError, PrefectException):
            # A server that is restarted; asked again.
            continue
