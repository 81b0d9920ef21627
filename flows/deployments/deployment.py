"""Send one deployment of prefect.yaml to the server, in one request, keeping what users set on the page.

The same request stores the file's values as a label of the deployment, so that the next one can detect which values
users have set.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values

from flows.deployments.form import request_defaults, with_recipe
from flows.deployments.page_edits import UNKNOWN, Edit, Schedule, merge, schedule_in_words
from pipelines.contract.errors import InputError

RECORD_LABEL = "clozeworks.deployed"
DEFAULT_QUEUE = "default"
_NO_SLUG = "without a slug"


@dataclass(frozen=True)
class Settings:
    """Settings of a deployment other than its code: as comparable JSON values, and its schedules as objects."""

    values: dict[str, Any]
    schedules: dict[str, Schedule]
    max_scheduled_runs: dict[tuple[str | None, str], int] = field(default_factory=dict)
    """By slug and text of a schedule."""


@dataclass(frozen=True)
class Deployed:
    """Result of a deployment: whether it is new, the edits that were kept, and a note about its form."""

    name: str
    new: bool
    edits: tuple[Edit, ...]
    note: str = ""


def deploy(
    client: SyncPrefectClient, listed: Mapping[str, Any], pull_steps: list[dict[str, Any]], reset: bool
) -> Deployed:
    """Create or update a deployment; values that users set are kept unless it is reset.

    Args:
        client: of the server.
        listed: its entry in prefect.yaml.
        pull_steps: steps that a worker takes before it runs the flow.
        reset: take all values from the file.

    Raises:
        InputError: the server refuses it.
    """
    entry = cast(dict[str, Any], apply_values(dict(listed), dict(os.environ), remove_notset=False))
    flow = flow_of(entry["entrypoint"])
    schema = parameter_schema(flow).model_dump(exclude_unset=True)
    new = _settings_of_file(entry, flow)
    name = f"{flow.name}/{entry['name']}"
    try:
        found = client.read_deployment_by_name(name)
    except ObjectNotFound:
        found = None
    values, edits, here = new.values, list[Edit](), Settings({}, {})
    if found is not None and not reset:
        here = _settings_on_server(found, new, request_defaults(schema))
        values, edits = merge(_recorded(found), here.values, new.values)
    shown, note = with_recipe(schema, values["parameters"])
    schedules = [_schedule(slug, each, here, new) for slug, each in values["schedules"].items()]
    body = {
        **{key: value for key, value in values.items() if key != "schedules"},
        "name": entry["name"],
        "flow_id": str(client.create_flow_from_name(flow.name)),
        "entrypoint": entry["entrypoint"],
        "path": None,
        "pull_steps": pull_steps,
        "parameter_openapi_schema": shown,
        "schedules": [schedule.model_dump(mode="json", exclude_unset=True) for schedule in schedules],
        "labels": {RECORD_LABEL: json.dumps(new.values, sort_keys=True, separators=(",", ":"))},
    }
    identifier = _send(client, name, body)
    _restore_limits_of_schedules(client, identifier, here.max_scheduled_runs)
    return Deployed(name, found is None, tuple(edits), note)


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """The flow that an entry point such as `flows/pretrain.py:pretrain` names."""
    path, _, function = entrypoint.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return cast(Flow[..., Any], getattr(module, function))


def _settings_of_file(entry: Mapping[str, Any], flow: Flow[..., Any]) -> Settings:
    limit, pool = entry.get("concurrency_limit", {}), entry["work_pool"]
    schedules: dict[str, Schedule] = {
        each["slug"]: CronSchedule(cron=each["cron"], timezone=each["timezone"]) for each in entry.get("schedules", [])
    }
    active = {each["slug"]: each.get("active", True) for each in entry.get("schedules", [])}
    values = {
        "parameters": entry.get("parameters", {}),
        "enforce_parameter_schema": entry.get("enforce_parameter_schema", True),
        "paused": entry.get("paused", False),
        "concurrency_limit": limit.get("limit"),
        "concurrency_options": {"collision_strategy": limit["collision_strategy"]} if limit else None,
        "description": entry.get("description") or flow.description,
        "tags": sorted(entry.get("tags", [])),
        "work_pool_name": pool["name"],
        "work_queue_name": pool.get("work_queue_name", DEFAULT_QUEUE),
        "job_variables": pool.get("job_variables", {}),
        "schedules": {slug: _schedule_values(each, active[slug], {}) for slug, each in schedules.items()},
    }
    return Settings(values, schedules)


def _settings_on_server(found: DeploymentResponse, new: Settings, defaults: Mapping[str, Any]) -> Settings:
    limit, options = found.global_concurrency_limit, found.concurrency_options
    schedules, values, most = dict[str, Schedule](), dict[str, Any](), dict[tuple[str | None, str], int]()
    for each in sorted(found.schedules, key=lambda each: schedule_in_words(each.schedule)):
        # Schedules created on the page have no slug.
        slug = each.slug or f"{_NO_SLUG}, {schedule_in_words(each.schedule)}"
        slug += f", {len(schedules)}" * (slug in schedules)
        schedules[slug] = each.schedule
        values[slug] = _schedule_values(each.schedule, each.active, each.parameters)
        if each.max_scheduled_runs is not None:
            most[each.slug, schedule_in_words(each.schedule)] = each.max_scheduled_runs
    kept = None if options is None else options.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    everything = {
        "parameters": _filled_in(found.parameters, defaults),
        "enforce_parameter_schema": found.enforce_parameter_schema,
        "paused": found.paused,
        "concurrency_limit": None if limit is None else limit.limit,
        "concurrency_options": kept,
        "description": found.description,
        "tags": sorted(found.tags),
        # A deployment whose pool was deleted has none; it gets the file's again.
        "work_pool_name": found.work_pool_name or new.values["work_pool_name"],
        "work_queue_name": found.work_queue_name or new.values["work_queue_name"],
        "job_variables": found.job_variables,
        "schedules": values,
    }
    return Settings(everything, schedules, most)


def _filled_in(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the defaults that the page writes into a request when a deployment is edited there."""
    request = parameters.get("request")
    if not isinstance(request, Mapping):
        return dict(parameters)
    kept = {key: value for key, value in request.items() if key not in defaults or value != defaults[key]}
    return {**parameters, "request": kept}


def _schedule_values(schedule: Schedule, active: bool, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"when": schedule_in_words(schedule), "active": active, "parameters": dict(parameters)}


def _schedule(slug: str, values: Mapping[str, Any], here: Settings, new: Settings) -> DeploymentScheduleCreate:
    """The schedule that a merge chose: of two with the same slug, the one whose text it took."""
    candidates = [found for settings in (here, new) if (found := settings.schedules.get(slug)) is not None]
    schedule = next(each for each in candidates if schedule_in_words(each) == values["when"])
    own: dict[str, Any] = {} if slug.startswith(_NO_SLUG) else {"slug": slug}
    return DeploymentScheduleCreate(
        schedule=schedule, active=values["active"], parameters=values.get("parameters") or {}, **own
    )


def _recorded(found: DeploymentResponse) -> Any:
    """The file's values at the last deployment; UNKNOWN for a deployment by an earlier release or another tool."""
    record = found.labels.get(RECORD_LABEL)
    if not isinstance(record, str):
        return UNKNOWN
    try:
        return json.loads(record)
    except json.JSONDecodeError:
        return UNKNOWN


def _send(client: SyncPrefectClient, name: str, body: dict[str, Any]) -> str:
    # The client's own call has no labels; the server creates or replaces the deployment in one transaction.
    try:
        return str(client.request("POST", "/deployments/", json=body).json()["id"])
    except PrefectHTTPStatusError as error:
        answer = " ".join(error.response.text.split())
        if error.response.is_client_error:
            raise InputError(f"{name}: rejected by the server: {answer}") from error
        raise InputError(
            f"{name}: not deployed, the server answered {error.response.status_code} to every attempt: {answer}; "
            "run the same command again"
        ) from error


def _restore_limits_of_schedules(
    client: SyncPrefectClient, identifier: str, most: Mapping[tuple[str | None, str], int]
) -> None:
    """Restore the limits on planned runs of schedules, which the server drops when it replaces a deployment."""
    for each in client.read_deployment(identifier).schedules if most else []:
        limit = most.get((each.slug, schedule_in_words(each.schedule)))
        if limit is not None:
            names = {"id": identifier, "schedule_id": str(each.id)}
            body = {"max_scheduled_runs": limit}
            client.request("PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=names, json=body)
