"""Child runs on a real server with real workers: waited for, named in a failure, cancelled with their parent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending, Scheduled
from tests.support.flows.parts_of_a_run import CHILDREN, PARENTS
from tests.support.flows.prefect_site import PrefectSite, descendants, kill, prefect_site, wait_for

from flows.dispatch import child_runs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[PrefectSite]:
    with prefect_site(str(tmp_path_factory.mktemp("prefect")), str(repository)) as running:
        deployed = running.command("tests.support.flows.parts_of_a_run")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        running.start_worker(CHILDREN)
        yield running


@pytest.fixture(scope="module")
def worker(site: PrefectSite) -> Any:
    return site.start_worker(PARENTS)


def start(site: PrefectSite, children: dict[str, tuple[str, str]], **more: Any) -> str:
    named = {label: [f"{flow}/working", deed] for label, (flow, deed) in children.items()}
    return site.run(site.deployment("parent", "waiting"), {"children": named, **more})


def children_of(site: PrefectSite, run: str) -> dict[str, dict[str, Any]]:
    """The child runs of a run by label."""
    found = site.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    return {each["name"].rpartition(": ")[2]: each for each in found}


def wait_until_child_works(marker: Path) -> None:
    wait_for(lambda: marker.exists() and marker.read_text(), "a child at work")


@pytest.mark.usefixtures("worker")
def test_a_part_that_fails_leaves_the_others_and_is_named_and_a_lost_one_is_started_again(
    site: PrefectSite, tmp_path: Path
) -> None:
    children = {"one": ("child", "completes"), "two": ("child", "fails"), "three": ("child", "dies")}
    run = start(site, children, marker=str(tmp_path / "died"), attempts=2)
    state = site.wait_until_ended(run)
    assert state["type"] == "FAILED"
    assert "1 of 3 parts have failed; the other 2 have completed and are kept" in state["message"]
    assert "two: Flow run encountered an exception: ValueError: asked to fail" in state["message"]
    found = site.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    ends = sorted((each["name"].rpartition(": ")[2], each["state"]["type"]) for each in found)
    assert ends == [("one", "COMPLETED"), ("three", "COMPLETED"), ("three", "CRASHED"), ("two", "FAILED")]
    assert {each["work_pool_name"] for each in found} == {CHILDREN}
    assert any("three: crashed; it is started again" in line for line in site.log_lines(run))


@pytest.mark.usefixtures("worker")
def test_a_deployment_that_is_missing_or_would_wait_for_its_own_parent_is_refused(site: PrefectSite) -> None:
    missing = site.wait_until_ended(start(site, {"one": ("absent", "completes")}))
    assert "absent/working: no such deployment on the Prefect server; create it with" in missing["message"]
    same = site.wait_until_ended(start(site, {"one": ("neighbour", "completes")}))
    assert (
        f"its pool {PARENTS} runs 1 flow at a time, and the run that waits for it takes that place" in same["message"]
    )


@pytest.mark.usefixtures("worker")
def test_a_cancelled_run_cancels_its_children(site: PrefectSite, tmp_path: Path) -> None:
    run = start(site, {"one": ("child", "waits")}, marker=str(tmp_path / "at-work"))
    wait_until_child_works(tmp_path / "at-work")
    site.set_state(run, "CANCELLING")
    assert site.wait_until_ended(run)["type"] == "CANCELLED"
    assert site.wait_until_ended(children_of(site, run)["one"]["id"])["type"] == "CANCELLED"
    assert any("cancels 1 runs that it has started" in line for line in site.log_lines(run))


def test_children_end_with_a_process_that_was_killed_and_with_a_machine_that_was_lost(
    site: PrefectSite, worker: Any, tmp_path: Path
) -> None:
    run = start(site, {"one": ("child", "waits")}, marker=str(tmp_path / "first"))
    wait_until_child_works(tmp_path / "first")
    for process in flows_of(worker):
        kill(process)
    assert site.wait_until_ended(run)["type"] == "CRASHED"
    assert site.wait_until_ended(children_of(site, run)["one"]["id"])["type"] == "CANCELLED"

    run = start(site, {"one": ("child", "waits")}, marker=str(tmp_path / "second"))
    wait_until_child_works(tmp_path / "second")
    lost = descendants(worker)
    worker.kill()
    worker.wait()
    for process in lost:
        kill(process)
    child = children_of(site, run)["one"]["id"]
    assert (site.state(run)["type"], site.state(child)["type"]) == ("RUNNING", "RUNNING")
    # As the automation does when the run has been silent for ten minutes.
    site.set_state(run, "CRASHED")
    assert site.wait_until_ended(child)["type"] == "CANCELLED"


def flows_of(worker: Any) -> list[psutil.Process]:
    found = descendants(worker)
    assert found
    return found


def test_a_late_run_that_a_worker_has_taken_waits_for_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_runs, "reason_to_wait", lambda _, pool: f"pool {pool} has no free slot (limit 1)")
    late = [
        FlowRun(flow_id=uuid4(), work_pool_name=pool, state=state)
        for pool, state in (("cpu", Pending()), ("gpu", Scheduled()), ("gpu", Scheduled()), (None, Pending()))
    ]
    client: Any = None  # only the replaced function would ask it
    assert child_runs._waits(client, late) == [
        "runs wait: pool gpu has no free slot (limit 1)",
        "runs wait: a worker of pool cpu is starting them",
    ]
