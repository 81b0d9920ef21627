"""Deployments and work pools of parts, as the server has them."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.exceptions import ObjectNotFound

from pipelines.contract.errors import InputError


def require_deployment(client: SyncPrefectClient, name: str, own: FlowRun) -> None:
    """Check that a deployment exists and that its pool can run it next to the run that waits for it.

    Args:
        client: of the server.
        name: `FLOW/NAME`.
        own: the run that will wait.

    Raises:
        InputError: it does not exist, or both would wait for each other.
    """
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise InputError(
            f"{name}: no such deployment on the Prefect server; create it with `clozeworks deploy`, or name another one"
        ) from None
    pool = deployment.work_pool_name
    if pool is None or pool != own.work_pool_name:
        return
    limit = client.read_work_pool(pool).concurrency_limit
    if limit is not None and limit < 2:
        raise InputError(
            f"{name}: its pool {pool} runs {limit} flow at a time, and the run that waits for it takes that place; "
            f"raise the limit (prefect work-pool set-concurrency-limit {pool} 2), or use a deployment in another pool"
        )


def reason_to_wait(client: SyncPrefectClient, name: str) -> str:
    """Why a pool does not start a run that is due, with the remedy."""
    pool = client.read_work_pool(name)
    if pool.is_paused:
        return f"pool {name} is paused; resume it: prefect work-pool resume {name}"
    if pool.status == WorkPoolStatus.NOT_READY:
        return f"no worker of pool {name} is online; start one: prefect worker start --pool {name}"
    limit = pool.concurrency_limit
    return f"pool {name} has no free slot (limit {limit})" if limit is not None else f"pool {name} has not started them"
