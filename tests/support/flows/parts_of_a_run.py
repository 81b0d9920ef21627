"""Small flows for the tests of child runs, and their deployments in two pools; as a script: create these."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # it also runs as a script

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.actions import WorkPoolCreate
from pydantic import BaseModel

from flows.deployments.deployment import deploy
from flows.dispatch.child_runs import Part, PartError, cancel_children_of_crashed, run_parts
from flows.running import parent_watch

PARENTS, CHILDREN = "parents", "children"
DEPLOYMENTS = {"parent": ("waiting", PARENTS), "child": ("working", CHILDREN), "neighbour": ("working", PARENTS)}
_FILE = "tests/support/flows/parts_of_a_run.py"


class ChildRequest(BaseModel):
    """What a child does: "completes", "fails", "waits" for an hour, or "dies" unless the file `marker` exists."""

    deed: str
    marker: str = ""


class ParentRequest(BaseModel):
    """The children: deployments with their deeds, by label."""

    children: dict[str, tuple[str, str]]
    marker: str = ""
    attempts: int = 1


@flow(name="child", persist_result=False)
def child(request: ChildRequest) -> None:
    parent_watch.WATCH_SECONDS = 2.0
    with parent_watch.watching_parent():
        if request.deed == "fails":
            raise ValueError("asked to fail")
        if request.deed == "dies" and not os.path.exists(request.marker):
            Path(request.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if request.deed == "waits":
            Path(request.marker).write_text(str(os.getppid()))
            time.sleep(3600)


neighbour = child.with_options(name="neighbour")


@flow(name="parent", persist_result=False, on_crashed=[cancel_children_of_crashed])
def parent(request: ParentRequest) -> None:
    parts = [
        Part(label, deployment, {"deed": deed, "marker": request.marker})
        for label, (deployment, deed) in request.children.items()
    ]
    if problems := run_parts(parts, get_run_logger().info, request.attempts):
        raise PartError(problems, len(parts))


def main() -> None:
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": os.environ["CLOZEWORKS_HOME"]}}]
    with get_client(sync_client=True) as client:
        for pool, limit in ((PARENTS, 1), (CHILDREN, 3)):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=limit))
        for name, (deployment, pool) in DEPLOYMENTS.items():
            deploy(
                client,
                {
                    "name": deployment,
                    "entrypoint": f"{_FILE}:{name}",
                    "work_pool": {"name": pool},
                    "enforce_parameter_schema": False,
                },
                pull,
                reset=False,
            )


if __name__ == "__main__":
    main()
