"""Merge a request that names no recipe into the request of the deployment that is run, key by key.

Prefect replaces complete parameters: `prefect deployment run pretrain/pretrain --param request='{"workspace": "w"}'`
would otherwise drop the deployment's recipe, overrides and other values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""Set by Prefect when a worker runs a flow."""


def completed(given: Any, file: str) -> Any:
    """The request merged over the deployment's; unchanged if it names a file or there is no deployment.

    Args:
        given: a request.
        file: the key of the file that decides what is run: a recipe or a study.
    """
    if not isinstance(given, Mapping) or given.get(file) is not None:
        return given
    deployed = _request_of_deployment()
    return given if deployed is None else overlaid(deployed, given)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; a list or a plain value of `above` replaces the one of `below`."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        result[key] = overlaid(under, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return result


def _request_of_deployment() -> dict[str, Any] | None:
    run = os.environ.get(_RUN_VARIABLE)
    if run is None:
        return None
    from uuid import UUID

    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_flow_run(UUID(run)).deployment_id
        found = None if deployment is None else client.read_deployment(deployment).parameters.get("request")
    return dict(found) if isinstance(found, Mapping) else None
