"""Deploy the flows to a Prefect server: create missing work pools, then the deployments in flows/prefect.yaml.

    clozeworks deploy                                   # machines with a checkout, type process
    CLOZEWORKS_IMAGE=registry/clozeworks:1 clozeworks deploy --types docker kubernetes

    clozeworks deploy --reset pretrain                  # discard the edits made to this one on the page

The server is the one that PREFECT_API_URL names. Existing pools and an existing automation are not changed.
Deployments are updated, except for what users set on Prefect's page: schedules (switched on or off, changed,
added, deleted), parameters, pauses, limits, tags. Each value that is kept is reported in one line.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML has no types, and its stubs are one package more
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.console.tables import shown
from flows.deployments.deployment import deploy
from flows.running.command import client_patience, require_server
from pipelines.commands.command_line import CommandParser
from pipelines.contract.errors import EXIT_FAILED, InputError, exit_code_of

PREFECT_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prefect.yaml")
IMAGE_VARIABLE = "CLOZEWORKS_IMAGE"
TAG = "clozeworks"
RUNS_PER_POOL = 1
"""Pre-training takes every device of its node, and so may fine-tuning; prefect.yaml names the pools with more."""

AUTOMATION = "clozeworks: a run that went silent has crashed"
SILENCE_SECONDS = 600
"""A flow sends a heartbeat every 180 s; three in a row may be lost."""
MOST_RETRIES = 7
"""A server on SQLite answers 503 while other processes write; Prefect's pauses add up to about 4 minutes."""

_NEXT = "start a worker on the machine that should run flows: prefect worker start --pool {pool}"
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks deploy",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: clozeworks deploy --types process docker",
    )
    parser.add_argument("--types", nargs="+", choices=("process", "docker", "kubernetes"), default=["process"])
    parser.add_argument(
        "--reset",
        metavar="NAME",
        action="append",
        default=[],
        help="reset this deployment to prefect.yaml, discarding edits made on the page; may be repeated",
    )
    arguments = parser.parse_args(argv)
    api_url = PREFECT_API_URL.value()
    if not api_url:
        raise InputError(
            "PREFECT_API_URL is not set; start a server (`prefect server start`) and set it to its address"
        )
    require_server(api_url)
    chosen = deployments_of(arguments.types)
    if unknown := [name for name in arguments.reset if name not in chosen]:
        raise InputError(f"--reset {unknown[0]}: not deployed with these types; there are: {', '.join(chosen)}")
    if any(kind != "process" for kind in chosen.values()) and not os.environ.get(IMAGE_VARIABLE):
        raise InputError(f"{IMAGE_VARIABLE} is not set; docker and kubernetes pools need the image to run")
    file = _prefect_file()
    with temporary_settings(updates=client_patience(MOST_RETRIES)), get_client(sync_client=True) as client:
        for pool, kind in _pools_of(arguments.types).items():
            limit = file["definitions"]["limits"].get(pool, RUNS_PER_POOL)
            print(f"pool        {pool} ({kind}) {_make_pool(client, pool, kind, limit)}")
        print(f"automation  {AUTOMATION!r} {_make_automation(client)}")
        refused = [
            str(problem)
            for listed in file["deployments"]
            if listed["name"] in chosen
            and (problem := _deploy(client, listed, file["pull"], listed["name"] in arguments.reset))
        ]
    print(_NEXT.format(pool=next(iter(_pools_of(arguments.types)))))
    return EXIT_FAILED if refused else 0


def _deploy(
    client: SyncPrefectClient, listed: Mapping[str, Any], pull_steps: list[dict[str, Any]], reset: bool
) -> InputError | None:
    """Deploy one and report the outcome; one that the server refuses does not stop the others."""
    try:
        done = deploy(client, listed, pull_steps, reset)
    except InputError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        return error
    what = "created" if done.new else "reset to prefect.yaml" if reset else "up to date"
    print(f"deployment  {done.name} {what}")
    for edit in done.edits:
        print(f"    kept: {shown(edit)}")
    if done.edits:
        print(f"    to reset all of it to prefect.yaml: clozeworks deploy --reset {listed['name']}")
    if done.note:
        print(f"    {shown(done.note)}")
    return None


def deployments_of(types: list[str]) -> dict[str, str]:
    """The deployments in prefect.yaml whose pool has one of these types, each with that type."""
    pools = _pools_of(types)
    listed = _prefect_file()["deployments"]
    return {each["name"]: pools[pool] for each in listed if (pool := each["work_pool"]["name"]) in pools}


def _pools_of(types: list[str]) -> dict[str, str]:
    """The pools of these types by name, as prefect.yaml defines them."""
    defined = _prefect_file()["definitions"]["pools"]
    return {pool["name"]: kind for kind, pools in defined.items() if kind in types for pool in pools.values()}


def _prefect_file() -> dict[str, Any]:
    with open(PREFECT_FILE) as stream:
        content: dict[str, Any] = yaml.safe_load(stream)
    return content


def _make_pool(client: SyncPrefectClient, name: str, kind: str, runs: int) -> str:
    """Create a pool unless one of this name exists; returns the outcome in words."""
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        template = template_with_devices(_template(client, kind), kind)
        pool = WorkPoolCreate(name=name, type=kind, base_job_template=template, concurrency_limit=runs)
        client.create_work_pool(pool)
        return "created"
    if found.type != kind:
        raise InputError(f"{name}: this pool exists with type {found.type}, not {kind}; delete or rename it")
    left = [] if found.concurrency_limit == runs else [f"limit {found.concurrency_limit or 'none'}"]
    left += ["paused"] if found.is_paused else []
    return f"exists; kept: {', '.join(left)}" if left else "exists"


def _template(client: SyncPrefectClient, kind: str) -> dict[str, Any]:
    """The server's default job template of a type."""
    # The synchronous client lacks this call; the URL is the one that the asynchronous client uses.
    collections = client.request("GET", "/collections/views/{view}", path_params={"view": "aggregate-worker-metadata"})
    for workers in collections.json().values():
        if kind in workers:
            template: dict[str, Any] = workers[kind]["default_base_job_configuration"]
            return template
    raise InputError(
        f"--types {kind}: the server does not know this worker type; update the server, or create the pool by hand"
    )


def template_with_devices(template: dict[str, Any], kind: str) -> dict[str, Any]:
    """Add what Prefect's Kubernetes template lacks for training: GPUs, and shared memory for the ranks.

    Returns:
        A copy with the job variable `gpus`; templates of other types unchanged.
    """
    if kind != "kubernetes":
        return template
    changed = copy.deepcopy(template)
    changed["variables"]["properties"]["gpus"] = {
        "title": "GPUs",
        "description": "nvidia.com/gpu of the container; empty for none",
        "type": "string",
    }
    pod = changed["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
    container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108  # shared memory
    pod["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    return changed


def _make_automation(client: SyncPrefectClient) -> str:
    """Have the server mark runs as crashed when their machine died and can no longer report it."""
    if found := client.read_automations_by_name(AUTOMATION):
        return "exists" if any(each.enabled for each in found) else "exists; kept: switched off"
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_SECONDS),
    )
    message = f"No heartbeat for {SILENCE_SECONDS} s; run the flow again to resume from the completed stages."
    action = ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)
    client.create_automation(AutomationCore(name=AUTOMATION, trigger=trigger, actions=[action]))
    return "created"


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
