"""A checkpoint as an encoder: found by its name, verified, exported to the cache once, never half read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.inputs.registered_models import CACHE_VARIABLE
from training.export_checkpoint import main as export
from training.features.extractor import load_encoder
from training.resuming import checkpoint_export
from training.stages import checkpoint_source
from training.stages.checkpoint_source import checkpoint_of, find_checkpoint
from training.stages.encoders import encoder_directory, source_digest
from training.stages.finetuning import finetuning_key
from training.stages.sections import FinetuningSections


def write_checkpoint(run: str, step: int, content: bytes = b"weights", stage: str = "pretraining") -> str:
    """A checkpoint whose weights cannot be read."""
    directory = f"{run}/checkpoints/step-{step:010d}"
    storage.write_bytes(f"{directory}/states.pt", content)
    key = StageKey(stage, 2, {"model": {"hidden_size": 16}}, {"vocabulary": "0123"})
    write_manifest(directory, key.manifest([record_of(directory, "states.pt", 0)], {}, "test"))
    return directory


def test_checkpoints_are_found_by_their_steps(tmp_path: Path) -> None:
    workspace = str(tmp_path / "demo")
    for step in (5, 10):
        write_checkpoint(f"{workspace}/pretraining", step)
    kept = write_checkpoint(f"{workspace}/pretraining.1", 7)
    assert find_checkpoint(workspace, "step-5").name == "step-5"
    assert find_checkpoint(f"file://{workspace}/", "step-0000000010").name == "step-10"
    assert find_checkpoint(workspace, "latest").name == "step-10"
    found = find_checkpoint(f"{workspace}/pretraining.1", "step-7")
    assert (found.directory, found.workspace) == (kept, workspace)
    # The run under way comes first.
    under_way = write_checkpoint(f"{workspace}/pretraining.building", 5, b"others")
    assert find_checkpoint(workspace, "latest").directory == find_checkpoint(workspace, "step-5").directory == under_way
    assert find_checkpoint(workspace, "step-10").name == "step-10"


def test_other_sources_are_no_checkpoints(tmp_path: Path) -> None:
    for source in (
        "models:/name@latest2",
        "models:/name@champion",
        "bert",
        "demo@step-",
        "@latest",
        "s3://key@bucket/demo",
    ):
        assert checkpoint_of(source) is None
    os.mkdir(tmp_path / "demo@step-5")
    assert checkpoint_of(str(tmp_path / "demo@step-5")) is None


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    workspace = str(tmp_path)
    with pytest.raises(InputError, match="no checkpoint step-5; there are none; a run writes one every"):
        find_checkpoint(workspace, "step-5")
    for step in range(1, 11):
        write_checkpoint(f"{workspace}/pretraining", step)
    with pytest.raises(InputError, match=r"no checkpoint step-12; there are: 2 earlier ones, step-3, .*, step-10$"):
        find_checkpoint(workspace, "step-12")
    for name in ("10", "step-", "step-1x", "newest"):
        with pytest.raises(InputError, match="not the name of a checkpoint; give step-1000, or latest"):
            find_checkpoint(workspace, name)
    with pytest.raises(InputError, match="no such directory"):
        find_checkpoint(f"{workspace}/absent", "latest")
    write_checkpoint(f"{workspace}/pretraining", 99, stage="distillation")
    with pytest.raises(InputError, match="a checkpoint of the stage 'distillation'"):
        find_checkpoint(workspace, "latest")
    os.remove(f"{workspace}/pretraining/checkpoints/step-0000000007/manifest.json")
    with pytest.raises(InputError, match="has no manifest"):
        find_checkpoint(workspace, "step-7")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(CACHE_VARIABLE, f"{tmp_path}/cache")
    return f"{tmp_path}/cache/checkpoints"


def not_again(*_: object) -> None:
    pytest.fail("exported again")


def finetuning_digest(workspace: Any, encoder: str) -> str:
    recipe = read_recipe(workspace.recipe, [f'finetuning.encoder="{encoder}"', f'run.workspace="{workspace.path}"'])
    return finetuning_key(FinetuningSections.of(recipe), "word-order", "pretrained").digest


@pytest.mark.slow
def test_a_checkpoint_is_an_encoder(undisturbed: Any, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last, latest = (f"{undisturbed.path}@{name}" for name in ("step-15", "step-20", "latest"))
    with monkeypatch.context() as patched:
        # Keys need no export: `status` asks for them.
        patched.setattr(checkpoint_source, "EXPORTER", "training.stages.absent:absent")
        keys = {name: finetuning_digest(undisturbed, name) for name in (first, last, latest)}
        assert keys[last] == keys[latest] != keys[first]
        assert source_digest(first) != source_digest(last)
    assert not os.path.exists(cache)
    directory = encoder_directory(last)
    assert os.path.dirname(directory) == cache
    assert load_encoder(directory).config.hidden_size == 32
    monkeypatch.setattr(checkpoint_export, "export_checkpoint", not_again)
    assert encoder_directory(latest) == directory
    assert sorted(os.listdir(cache)) == [".locks", os.path.basename(directory)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_checkpoint_that_is_deleted_while_it_is_read_is_never_half_exported(
    undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before or after its weights are read; in the second case another one of the same step has replaced it."""
    from training.engine import checkpoint_weights

    workspace = f"{tmp_path}/copy"
    shutil.copytree(undisturbed.path, workspace)
    checkpoint = find_checkpoint(workspace, "step-15")
    read = checkpoint_weights.full_precision_weights

    def interrupted(directory: str, model: Any) -> Any:
        weights = read(directory, model) if moment == "after" else None
        shutil.rmtree(directory)
        if moment == "after":
            write_checkpoint(f"{workspace}/pretraining", 15)
        return read(directory, model) if weights is None else weights

    monkeypatch.setattr(checkpoint_weights, "full_precision_weights", interrupted)
    with pytest.raises(
        InputError, match=r"step-0000000015: deleted by its run while it was read .*there are: .*step-20"
    ):
        checkpoint_export.export_checkpoint(checkpoint, f"{tmp_path}/out", print)
    assert sorted(os.listdir(tmp_path)) == ["copy"]


@pytest.mark.slow
def test_nothing_is_exported_from_what_does_not_belong_together(
    undisturbed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, output = f"{tmp_path}/copy", str(tmp_path / "out")
    shutil.copytree(undisturbed.path, workspace)
    storage.write_bytes(f"{output}/notes.txt", b"mine")
    with pytest.raises(InputError, match=r"out: exists and is not an empty directory"):
        export([workspace, "--output", output])
    os.remove(f"{output}/notes.txt")
    part = next(Path(workspace).glob("pretraining/checkpoints/step-0000000015/*optim_states.pt"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"optim_states\.pt: damaged"):
        export([workspace, "--output", output, "--checkpoint", "step-15"])
    shutil.rmtree(f"{workspace}/vocabulary")
    storage.write_bytes(f"{workspace}/vocabulary/vocab.txt", b"[PAD]\n")
    record = record_of(f"{workspace}/vocabulary", "vocab.txt", 1)
    write_manifest(f"{workspace}/vocabulary", StageKey("vocabulary", 1, {}, {}).manifest([record], {}, "test"))
    with pytest.raises(InputError, match=r"vocabulary: digest .* was trained with the vocabulary of digest"):
        export([workspace, "--output", output])
    assert os.listdir(output) == []
    assert "export: reading" in capsys.readouterr().out
