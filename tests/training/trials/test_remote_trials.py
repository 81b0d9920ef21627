"""Trials and encoders of a workspace in an object store: the bytes of a local one, and nothing damaged is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.training.tiny_models import write_tiny_encoder

from flows.remove import remove
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest, record_of, write_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.inputs.registered_models import CACHE_VARIABLE
from training.bert.huggingface import read_weights
from training.engine.processes import Processes
from training.stages.checkpoint_source import checkpoint_of
from training.stages.encoders import encoder_digest, encoder_directory
from training.stages.sections import FinetuningSections
from training.trials.running import beginning_of, open_problem, run_trial
from training.trials.side_by_side import sole_sweep
from training.trials.sweep_plan import plan
from training.trials.sweep_results import TaskSweep
from training.trials.trial_plan import planned_trials, require_inputs, trial_of

RECIPE = """
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 64
[finetuning]
tasks = ["answers", "tagging"]
compare_with_random = true
num_train_epochs = 1
batch_size = 4
max_seq_length = 16
precision = "fp32"
[[finetuning.tables]]
name = "answers"
train_file = "{directory}/answers.csv"
dev_file = "{directory}/answers.csv"
[finetuning.tagging]
train_file = "{directory}/entities.conll"
dev_file = "{directory}/entities.conll"
max_seq_length = 16
num_train_epochs = 1
batch_size = 4
[finetuning.sweep]
grid = "none"
learning_rates = [1e-2, 1e-3]
"""


def write_workspace(workspace: str, encoder: Path) -> None:
    """The results that fine-tuning reads."""
    for path in encoder.iterdir():
        storage.write_bytes(f"{workspace}/pretraining/encoder/{path.name}", path.read_bytes())
        if path.name != "model.safetensors":
            storage.write_bytes(f"{workspace}/vocabulary/{path.name}", path.read_bytes())
    for stage in ("vocabulary", "pretraining"):
        directory = f"{workspace}/{stage}"
        records = [record_of(directory, name, 0) for name in storage.list_files(directory)]
        write_manifest(directory, StageKey(stage, 1, {}, {}).manifest(records, {}, "test"))


def write_recipe(directory: Path) -> str:
    rows = [f"it returns the {'number' if row % 2 else 'list'},{'yes' if row % 2 else 'no'}" for row in range(8)]
    (directory / "answers.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (directory / "entities.conll").write_text("it O\nreturns B-LOC\n\nthe O\nnumber B-LOC\n\n" * 4)
    path = directory / "recipe.toml"
    path.write_text(RECIPE.format(directory=directory))
    return str(path)


def sections_of(recipe: str, workspace: str) -> FinetuningSections:
    return FinetuningSections.of(read_recipe(recipe, [f"run.workspace={workspace}"]))


def trained(sections: FinetuningSections, processes: Processes) -> dict[str, str]:
    """Train the trials of the recipe; returns the digests of their files."""
    require_inputs(sections)
    found = {}
    for task, start in planned_trials(sections.finetuning):
        trial = trial_of(sections, task, start)
        run_trial(trial, beginning_of(trial), open_problem(trial, None), processes)
        assert trial_of(sections, task, start).difference() is None
        manifest = read_manifest(trial.directory)
        assert manifest is not None
        found[trial.label] = manifest.digest
    return found


@pytest.mark.slow
def test_trials_in_a_store_are_those_of_a_disk(
    s3_workspace: str, tmp_path: Path, single_process: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_encoder(str(tmp_path / "encoder"))
    recipe, local, remote = write_recipe(tmp_path), str(tmp_path / "run"), f"{s3_workspace}/run"
    for workspace in (local, remote):
        write_workspace(workspace, tmp_path / "encoder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = trained(sections_of(recipe, local), single_process)
    assert not (tmp_path / "cache").exists()
    sections = sections_of(recipe, remote)
    assert trained(sections, single_process) == expected
    assert len(expected) == 4
    stored = storage.list_files(f"{remote}/finetuning")
    assert "answers/pretrained/metrics.jsonl" in stored
    assert not [name for name in stored if ".building" in name]
    assert not [path for path in (tmp_path / "cache/clozeworks/staging/builds").rglob("*") if path.is_file()]

    trials = plan(sections, "answers")
    with sole_sweep(remote):
        sweep = TaskSweep(f"{remote}/finetuning/answers/sweep", trials, keeps_all_models=False, mnli_first=False)
        for trial in trials:
            run_trial(trial, beginning_of(trial), open_problem(trial, None), single_process)
            sweep.enter(trial, None)
    assert sweep.complete == list(trials)
    assert [trial.has_model() for trial in trials] == [trial == sweep.best for trial in trials]
    assert storage.file_size_bytes(f"{remote}/finetuning/answers/sweep/best.json")


def test_encoders_are_read_from_a_store(s3_workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_encoder(str(tmp_path / "encoder"))
    expected = read_weights(str(tmp_path / "encoder"))
    workspace, elsewhere = f"{s3_workspace}/run", f"{s3_workspace}/hub/bert"
    write_workspace(workspace, tmp_path / "encoder")
    for path in (tmp_path / "encoder").iterdir():
        storage.write_bytes(f"{elsewhere}/{path.name}", path.read_bytes())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "models"))
    for source in (workspace, f"{workspace}/", f"{workspace}/pretraining/encoder", elsewhere):
        directory = encoder_directory(source)
        assert encoder_digest(directory) == encoder_digest(str(tmp_path / "encoder"))
        assert read_weights(directory).keys() == expected.keys()
    # By content where a manifest states it, by name, size and time elsewhere.
    assert len(list((tmp_path / "models/models").iterdir())) == 2
    for source, message in ((f"{s3_workspace}/absent", "no such directory"), (f"{workspace}/vocabulary", "no weights")):
        with pytest.raises(InputError, match=message):
            encoder_directory(source)

    name = f"{workspace}/pretraining/encoder/model.safetensors"
    data = storage.read_bytes(name)
    storage.write_bytes(name, data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "others"))
    with pytest.raises(InputError, match=r"s3://.*model\.safetensors: damaged"):
        encoder_directory(workspace)
    assert not list((tmp_path / "others/models").iterdir())


def test_checkpoints_and_kept_runs_are_found_in_a_store(s3_workspace: str) -> None:
    workspace = f"{s3_workspace}/run"
    for run, step in (("pretraining", 5), ("pretraining", 10), ("pretraining.1", 7)):
        directory = f"{workspace}/{run}/checkpoints/step-{step:010d}"
        storage.write_bytes(f"{directory}/states.pt", b"weights")
        key = StageKey("pretraining", 2, {"model": {}}, {})
        write_manifest(directory, key.manifest([record_of(directory, "states.pt", 0)], {}, "test"))
    # Without its manifest, which is written last, a checkpoint does not count.
    storage.write_bytes(f"{workspace}/pretraining/checkpoints/step-0000000015/states.pt", b"half")
    for source, name in (
        (f"{workspace}@latest", "step-10"),
        (f"{workspace}@step-5", "step-5"),
        (f"{workspace}/pretraining.1@latest", "step-7"),
    ):
        checkpoint = checkpoint_of(source)
        assert checkpoint is not None
        assert (checkpoint.name, checkpoint.workspace) == (name, workspace)
        assert checkpoint.is_unchanged()
    with pytest.raises(InputError, match=r"no checkpoint step-15; there are: step-5, step-10"):
        checkpoint_of(f"{workspace}@step-15")
    remove(workspace, "pretraining.1", is_sure=True)
    assert not storage.list_files(f"{workspace}/pretraining.1")
