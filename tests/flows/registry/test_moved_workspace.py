"""A workspace that was moved or copied, with a real registered model in it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from tests.support.flows import registered_models as models
from tests.support.statistics import statistics_with
from tests.support.training import tiny_models

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation
from flows.registry.logged_models import ModelFiles
from flows.registry.model_card import card_facts
from flows.registry.model_to_register import ModelToRegister
from flows.registry.promotion import move_alias
from flows.registry.registration import log_version
from flows.servers.mlflow_database import ARTIFACTS_NAME, DATABASE_NAME, set_up_mlflow
from flows.servers.moved_workspace import KEPT_SUFFIX, relocate
from flows.tracking.runs import Tracker
from pipelines.contract.errors import InputError
from pipelines.statistics.training import TrialStatistics

NAME = "trial-cola"
SENTENCES = ["It returns the number of items."]


def whole_in(workspace: Path) -> WholeRecipe:
    path = workspace.parent / "recipe.toml"
    path.write_text('[run]\nname = "trial"\nworkspace = "ws"\n[documents]\nsources = [{ inputs = ["corpus.txt"] }]\n')
    return RunRequest(recipe=str(path), workspace=str(workspace)).read()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one run, an artifact and a registered model; tests take copies of it."""
    workspace = tmp_path_factory.mktemp("original") / "ws"
    whole = whole_in(workspace)
    tracker = Tracker(whole)
    directory = str(workspace.parent / "model")
    tiny_models.write_tiny_classifier(directory)
    settings = {"max_seq_length": 16}
    manifest = models.manifest_of(
        directory, "finetuning", settings, statistics_with(TrialStatistics, metric="mcc", score=0.5)
    )
    files = ModelFiles(NAME, directory, settings)
    with tracker.flow_run("finetune", whole) as run_id:
        card = card_facts(whole, files, manifest)
        model = ModelToRegister(files, manifest, Evaluation("mcc", 0.5, "d" * 64), card)
        assert log_version(tracker, run_id, model) == "1"
        move_alias(tracker.client, NAME, "champion", "1")
    return workspace


@pytest.fixture
def moved(original: Path, tmp_path: Path) -> Path:
    """A copy of it under another name, with special characters of URLs."""
    return Path(shutil.copytree(original, tmp_path / "moved to #1"))


def answers(workspace: Path) -> object:
    mlflow.set_tracking_uri(f"sqlite:///{workspace}/{DATABASE_NAME}")
    try:
        return mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(SENTENCES).to_dict("records")
    finally:
        mlflow.set_tracking_uri(None)


def values_with(database: Path, part: str) -> set[tuple[str, str]]:
    """Tables and columns that contain a text."""
    found = set()
    with sqlite3.connect(database) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]:
                query = f'SELECT 1 FROM "{table}" WHERE instr(cast("{column}" AS text), ?) LIMIT 1'  # noqa: S608  # its own names
                if connection.execute(query, (part,)).fetchone():
                    found.add((table, column))
    return found


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_copy_loads_its_own_models_and_leaves_the_original_alone(
    original: Path, moved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(original)  # MLflow records the first load in the model's directory
    before = files_in(original)
    whole = whole_in(moved)
    with Tracker(whole).flow_run("finetune", whole) as run_id:
        pass
    told = [record.message for record in caplog.records if "the addresses in" in record.message]
    assert len(told) == 1
    assert str(original) in told[0]
    assert f"{DATABASE_NAME}{KEPT_SUFFIX}" in told[0]
    assert (moved / ARTIFACTS_NAME / run_id / "artifacts" / "recipe" / "recipe.toml").is_file()
    model = Path(MlflowClient(f"sqlite:///{moved}/{DATABASE_NAME}").get_model_version_download_uri(NAME, "1")[7:])
    assert str(model).replace("%20", " ").replace("%23", "#").startswith(f"{moved}/")
    assert answers(moved) == expected
    assert files_in(original) == before
    # The old path remains only in settings of the run, which are shown, never opened.
    assert {table for table, _ in values_with(moved / DATABASE_NAME, str(original))} <= {
        "params",
        "logged_model_params",
    }
    assert not relocate(str(moved)), "it was brought along already"


@pytest.mark.slow
def test_a_moved_workspace_loads_its_models_and_does_not_create_the_old_place(original: Path, tmp_path: Path) -> None:
    first = Path(shutil.copytree(original, tmp_path / "first"))
    assert relocate(str(first))
    second = first.rename(tmp_path / "second")
    whole = whole_in(second)
    with Tracker(whole).flow_run("finetune", whole):
        pass
    assert answers(second) == answers(original)
    assert not first.exists()


@pytest.mark.slow
def test_a_workspace_behind_a_link_is_where_it_was(original: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(original)
    assert not relocate(str(tmp_path / "link"))


@pytest.mark.slow
def test_artifacts_that_stayed_behind_are_asked_for(moved: Path) -> None:
    shutil.rmtree(moved / ARTIFACTS_NAME)
    before = (moved / DATABASE_NAME).read_bytes()
    with pytest.raises(InputError, match="move mlartifacts/ here too"):
        relocate(str(moved))
    assert (moved / DATABASE_NAME).read_bytes() == before


@pytest.mark.slow
def test_a_database_in_use_is_left_as_it_is(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.servers.databases._BUSY_SECONDS", 0.2)
    before = (moved / DATABASE_NAME).read_bytes()
    with sqlite3.connect(moved / DATABASE_NAME) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match=r"cannot be changed \(database is locked\)"):
            relocate(str(moved))
        other.rollback()
    assert (moved / DATABASE_NAME).read_bytes() == before
    assert relocate(str(moved))


@pytest.mark.slow
def test_experiments_that_a_person_keeps_elsewhere_stay_there(original: Path, moved: Path, tmp_path: Path) -> None:
    client = MlflowClient(set_up_mlflow(str(original)))
    elsewhere = client.get_experiment_by_name("clozeworks")
    assert elsewhere is not None
    moved_client = MlflowClient(f"sqlite:///{moved}/{DATABASE_NAME}")
    for name, place in (("mine", "s3://bucket/mlartifacts"), ("far", f"file://{tmp_path}/far")):
        moved_client.create_experiment(name, artifact_location=place)
    assert relocate(str(moved))
    places = {found.name: found.artifact_location for found in moved_client.search_experiments()}
    assert places["mine"] == "s3://bucket/mlartifacts"
    assert places["far"] == f"file://{tmp_path}/far"
    assert os.path.basename(places["clozeworks"]) == ARTIFACTS_NAME
    assert places["clozeworks"] != elsewhere.artifact_location
