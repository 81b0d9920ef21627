"""A flow or stage that was killed and is run again resumes in its MLflow run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.tracking.runs import FLOW_TAG, PARENT_TAG, SKIPPED_TAG, STAGE_TAG, Tracker
from pipelines.contract.manifest import Manifest, StageKey

KEY = "k" * 64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: creating it takes seconds."""
    return tmp_path_factory.mktemp("runs")


Read = Callable[..., WholeRecipe]


@pytest.fixture
def read(place: Path, request: pytest.FixtureRequest) -> Read:
    """The recipe of a test, with a setting changed; tests use different run names."""

    def whole(*overrides: str) -> WholeRecipe:
        path = place / f"{request.node.name}.toml"
        path.write_text(
            f'[run]\nname = "{request.node.name}"\nworkspace = "{place}"\n'
            '[documents]\nsources = [{ inputs = ["corpus.txt"] }]\n'
        )
        return RunRequest(recipe=str(path), overrides=overrides).read()

    return whole


def manifests() -> dict[str, Manifest]:
    return {"pretraining": StageKey("pretraining", 1, {"seed": 1}, {}).manifest([], {"steps": 3}, "0")}


def status(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def interrupted(tracker: Tracker, whole: WholeRecipe, key: str | None = KEY) -> tuple[str, str]:
    """A flow that is interrupted in its stage; the ids of both runs."""
    with (
        pytest.raises(KeyboardInterrupt),
        tracker.flow_run("pretrain", whole) as parent,
        tracker.stage_run("pretraining", parent, key) as stage,
    ):
        raise KeyboardInterrupt
    return parent, stage


@pytest.mark.slow
def test_what_was_interrupted_goes_on_in_its_runs(read: Read) -> None:
    whole = read()
    tracker = Tracker(whole)
    parent, stage = interrupted(tracker, whole)
    assert (status(tracker.client, parent), status(tracker.client, stage)) == ("KILLED", "KILLED")
    assert interrupted(tracker, whole) == (parent, stage)
    with tracker.flow_run("pretrain", whole) as again:
        assert again == parent
        assert status(tracker.client, parent) == "RUNNING"
        with tracker.stage_run("pretraining", again, KEY) as built:
            assert built == stage
            tracker.log_stage(built, manifests(), 1.5)
    assert (status(tracker.client, parent), status(tracker.client, stage)) == ("FINISHED", "FINISHED")
    with tracker.flow_run("pretrain", whole) as later, tracker.stage_run("pretraining", later, KEY) as skipped:
        assert later != parent
        assert skipped != stage


@pytest.mark.slow
def test_after_sigkill_the_run_is_still_called_running(read: Read) -> None:
    whole = read()
    tracker = Tracker(whole)
    parent, stage = interrupted(tracker, whole)
    for run_id in (parent, stage):
        tracker.client.update_run(run_id, status="RUNNING")
    assert interrupted(tracker, whole) == (parent, stage)


@pytest.mark.slow
def test_a_stage_that_was_complete_stays_in_its_run_as_built(read: Read) -> None:
    whole = read()
    tracker = Tracker(whole)
    parent, stage = interrupted(tracker, whole)
    with tracker.stage_run("pretraining", parent, KEY) as built:
        assert built == stage
        tracker.log_stage(stage, manifests(), 1.5)
    with tracker.flow_run("pretrain", whole) as again, tracker.stage_run("pretraining", again, KEY) as skipped:
        assert (again, skipped) == (parent, stage)
        tracker.log_stage(skipped, manifests(), None)
    run = tracker.client.get_run(stage)
    assert run.data.tags[SKIPPED_TAG] == "false"
    assert run.data.metrics["stage_seconds"] == 1.5
    children = tracker.client.search_runs([tracker.experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'")
    assert [child.info.run_id for child in children] == [stage]


@pytest.mark.slow
def test_another_recipe_gets_another_flow_run_and_takes_the_stage_along(read: Read) -> None:
    first = read()
    tracker = Tracker(first)
    parent, stage = interrupted(tracker, first)
    second = read("run.workers=2")
    other_parent, same_stage = interrupted(tracker, second)
    assert other_parent != parent
    assert same_stage == stage
    tags = tracker.client.get_run(stage).data.tags
    assert (tags[PARENT_TAG], tags[STAGE_TAG]) == (other_parent, "pretraining")
    assert tracker.client.get_run(other_parent).data.tags[FLOW_TAG] == "pretrain"
    assert interrupted(tracker, second, "another key")[1] != stage
    assert interrupted(tracker, second, None)[1] != stage
