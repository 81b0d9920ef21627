"""A finished pre-training is never deleted by a run, whatever becomes of the run that would replace it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.training.trainer import SHORT, Trainer

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.results.kept import kept_directories
from pipelines.results.locks import workspace_lock
from pipelines.results.marks import building_directory
from training.engine.processes import Processes
from training.pretraining import run as pretraining
from training.pretraining.run import EXIT_INTERRUPTED
from training.resuming.checkpointed_stage import is_to_run
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

pytestmark = pytest.mark.timeout(300)

OTHER = "pretraining.learning_rate=0.002"


@pytest.fixture
def train(make_workspace: Callable[[str], Any], single_process: Processes) -> Trainer:
    trainer = Trainer(make_workspace("replacing"), single_process)
    assert trainer() == 0
    return trainer


@pytest.mark.slow
def test_settings_that_change_to_and_fro_lose_nothing(train: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    first = train.weights()
    assert train(OTHER, stop_at=2) == EXIT_INTERRUPTED
    assert "stays until the new one is complete, and is then kept as" in capsys.readouterr().out
    assert train.is_result_of()
    assert train.weights() == first
    # The earlier settings have nothing to do, and the unfinished run stays.
    assert train() == 0
    with pytest.raises(InputError, match=r"another run \(pretraining\.learning_rate was 0\.002, is 0\.003\)"):
        train("pretraining.learning_rate=0.003")
    assert train(OTHER) == 0
    assert "resumed from checkpoint step-0000000002" in capsys.readouterr().out
    second = train.weights()
    assert train.is_result_of(OTHER)
    assert second != first
    assert kept_directories(train.directory) == [f"{train.directory}.1"]
    assert train.weights(f"{train.directory}.1") == first
    # What was kept was built with these settings: it becomes the result again, at once.
    assert train() == 0
    assert "is restored as the result" in capsys.readouterr().out
    assert train.weights() == first
    assert train.weights(f"{train.directory}.1") == second


@pytest.mark.slow
def test_a_restart_keeps_what_was_finished_and_what_was_not(train: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    first = train.weights()
    assert train(OTHER, stop_at=2) == EXIT_INTERRUPTED
    assert train(restart="anew") == 0
    assert train.weights() == first
    assert len(kept_directories(train.directory)) == 2
    unfinished, finished = kept_directories(train.directory)
    assert read_manifest(unfinished) is None
    assert os.path.isdir(f"{unfinished}/checkpoints/step-0000000002")
    assert train.weights(finished) == first
    assert f"is kept in {unfinished}" in capsys.readouterr().out
    # A named restart is resumed by the same name, and started over by another.
    assert train(restart="nightly", stop_at=3) == EXIT_INTERRUPTED
    assert train(restart="nightly") == 0
    assert "resumed from checkpoint step-0000000003" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "settings", "problem"),
    [
        ("a byte of the examples", (OTHER,), r"train-00000-of-00002\.arrow: damaged"),
        ("a byte of the vocabulary", (OTHER,), r"another vocabulary|vocab\.txt: damaged"),
        ("no disk", (OTHER,), r"checkpoints and the encoder will take about .* are free"),
        ("none", ("pretraining.micro_batch_size=1", "pretraining.phases.0.max_seq_length=48"), r"has lengths 32, 64"),
    ],
)
def test_a_refused_run_leaves_all_as_it_was(
    train: Trainer, monkeypatch: pytest.MonkeyPatch, damage: str, settings: tuple[str, ...], problem: str
) -> None:
    before = {name: Path(train.directory, name).read_bytes() for name in storage.list_files(train.directory)}
    if damage == "a byte of the examples":
        path = Path(train.workspace.path, "examples/length32/train-00000-of-00002.arrow")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    if damage == "a byte of the vocabulary":
        path = Path(train.workspace.path, "vocabulary/vocab.txt")
        path.write_bytes(path.read_bytes().replace(b"w7\n", b"x7\n"))
    if damage == "no disk":
        monkeypatch.setattr(pretraining, "disk_bytes_pretraining", lambda *_: 1e18)
    with pytest.raises(InputError, match=problem):
        train(*settings)
    assert {name: Path(train.directory, name).read_bytes() for name in storage.list_files(train.directory)} == before
    assert not os.path.exists(building_directory(train.directory))


def test_a_resumed_run_verifies_what_it_reads(train: Trainer) -> None:
    assert train(OTHER, stop_at=2) == EXIT_INTERRUPTED
    path = Path(train.workspace.path, "examples/length32/train-00001-of-00002.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-00001-of-00002\.arrow: damaged"):
        train(OTHER)


def test_a_second_run_at_once_is_refused_by_name(train: Trainer) -> None:
    with (
        workspace_lock(train.workspace.path, "pretraining"),
        pytest.raises(InputError, match=rf"^pretraining: being written by process {os.getpid()} on"),
    ):
        train(OTHER)
    assert train.is_result_of()


def test_a_run_of_a_release_that_trained_in_place_is_resumed(
    train: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = train.weights()
    os.remove(f"{train.directory}/manifest.json")
    shutil.rmtree(f"{train.directory}/checkpoints/step-0000000004")
    with pytest.raises(InputError, match="belongs to another run"):
        train(OTHER)
    assert train() == 0
    assert "resumed from checkpoint step-0000000003" in capsys.readouterr().out
    assert train.weights() == weights
    assert kept_directories(train.directory) == []


def test_a_directory_that_is_not_ours_is_refused(make_workspace: Callable[[str], Any]) -> None:
    workspace = make_workspace("foreign")
    mine = Path(workspace.path, "pretraining", "thesis.txt")
    mine.parent.mkdir()
    mine.write_text("mine")
    recipe = read_recipe(workspace.recipe, [f"run.workspace={json.dumps(workspace.path)}", *SHORT])
    inputs = pretraining_inputs(PretrainingSections.of(recipe))
    with pytest.raises(InputError, match=r"holds files that no stage of this project wrote \(thesis\.txt\)"):
        is_to_run(inputs.key, inputs.directory, None)
    assert mine.read_text() == "mine"
