"""Pre-training in an object store: nodes without a shared disk, killed, and resumed by nodes with empty disks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import REPOSITORY, SUPPORT
from tests.support.training.synthetic_run import Workspace, environment, free_port
from tests.support.training.trainer import Trainer

from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.recipe import read_recipe
from training.distillation.objective import DistillationObjective
from training.engine.processes import Processes
from training.pretraining.run import EXIT_INTERRUPTED, TrainingRun
from training.resuming.process_end import StopRequest
from training.stages.distillation import distillation_inputs
from training.stages.sections import DistillationSections

pytestmark = pytest.mark.timeout(600)

KILLED = str(SUPPORT / "training" / "killed_at.py")


def uploaded(workspace: Workspace, uri: str) -> Workspace:
    """A copy of a workspace's preprocessing in a store."""
    for name in storage.list_files(workspace.path):
        if name.startswith(("documents/", "vocabulary/", "examples/")):
            storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(workspace.path, name)))
    return Workspace(uri, workspace.recipe)


def start(command: list[str], disks: list[Path], ranks_per_node: int = 1) -> list[subprocess.Popen[str]]:
    """Start the ranks of a run, those of each node with a disk of its own."""
    world_size = len(disks) * ranks_per_node
    shared = {**environment(), "WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(ranks_per_node)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            command,
            env=shared
            | {"RANK": str(rank), "LOCAL_RANK": str(rank % ranks_per_node)}
            | {"XDG_CACHE_HOME": str(disks[rank // ranks_per_node])},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    try:
        return [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_killed_nodes_are_replaced_by_empty_ones(undisturbed: Any, s3_workspace: str, tmp_path: Path) -> None:
    remote = uploaded(undisturbed, f"{s3_workspace}/killed")
    arguments = [remote.recipe, "--workspace", remote.path]
    outputs = ended(start([sys.executable, KILLED, "12", *arguments], [tmp_path / "a", tmp_path / "b"]))
    building = storage.join(remote.path, "pretraining.building")
    stored = [name for name in storage.list_files(building) if name.endswith("/manifest.json")]
    assert stored, outputs
    # A newer checkpoint whose upload was cut off does not count.
    half = storage.join(building, "checkpoints/step-0000000013")
    name = "mp_rank_00_model_states.pt"
    data = storage.read_bytes(storage.join(building, stored[-1].rpartition("/")[0], name))
    storage.write_bytes(storage.join(half, name), data)

    # The lease of a killed run ends by itself, after its time.
    storage.remove_directory(storage.join(remote.path, ".locks"))
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    command = [sys.executable, "-m", "training.pretrain", *arguments]
    processes = start(command, [tmp_path / "c"], ranks_per_node=2)
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert f"resumed from checkpoint {stored[-1].split('/')[1]}" in outputs[0], outputs

    directory = storage.join(remote.path, "pretraining")
    ours, theirs = read_manifest(directory), read_manifest(storage.join(undisturbed.path, "pretraining"))
    assert ours is not None
    assert theirs is not None
    assert ours.files == theirs.files, "the encoder's bytes are those of the local run"
    lines = [json.loads(line) for line in storage.read_bytes(storage.join(directory, "metrics.jsonl")).splitlines()]
    assert {int(line["step"]): line["loss"] for line in lines if "loss" in line} == undisturbed.losses()
    left = [name for name in storage.list_files(remote.path) if "part.json" in name or "step-0000000013" in name]
    assert not left
    assert not storage.list_directories(building)


LONGER = "pretraining.phases=[{max_seq_length=32, steps=6, global_batch_size=8}]"
DISTILLED = [
    *("distillation.max_seq_length=32", "distillation.global_batch_size=16", "distillation.num_train_epochs=0.1"),
    *("distillation.learning_rate=1e-3", "distillation.checkpoint_every_steps=2", "distillation.eval_examples=16"),
]


def manifest_of(workspace: Workspace, name: str) -> Manifest:
    manifest = read_manifest(storage.join(workspace.path, name))
    assert manifest is not None, name
    return manifest


def whole_chain(workspace: Workspace, processes: Processes) -> None:
    """Stopped, resumed, trained with another seed, continued for longer, and distilled."""
    trainer = Trainer(workspace, processes)
    assert trainer(stop_at=2) == EXIT_INTERRUPTED
    assert trainer() == 0
    assert trainer("pretraining.seed=7") == 0
    assert trainer("pretraining.seed=7", LONGER, continued="") == 0
    recipe = read_recipe(workspace.recipe, [f"run.workspace={json.dumps(workspace.path)}", *DISTILLED])
    inputs = distillation_inputs(DistillationSections.of(recipe))
    assert TrainingRun(DistillationObjective(inputs, processes), processes, StopRequest()).run(restart=None) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_stopped_resumed_restarted_continued_and_distilled_as_on_a_disk(
    make_workspace: Callable[[str], Any],
    s3_workspace: str,
    single_process: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local = make_workspace("on_a_disk")
    remote = uploaded(local, s3_workspace)
    printed = {}
    for workspace in (local, remote):
        whole_chain(workspace, single_process)
        lines = capsys.readouterr().out.replace(workspace.path, "WORKSPACE").splitlines()
        printed[workspace] = [line for line in lines if "tokens/s" not in line and "no checkpoint yet" not in line]
    assert printed[remote] == printed[local]
    stages = [name for name in storage.list_directories(local.path) if name.startswith(("pretraining", "distillation"))]
    assert stages == ["distillation", "pretraining", "pretraining.1", "pretraining.2"]
    for stage in stages:
        ours, theirs = manifest_of(remote, stage), manifest_of(local, stage)
        assert ours.files == theirs.files
        assert (ours.config, ours.inputs) == (theirs.config, theirs.inputs)
        for file in ours.files:
            assert storage.sha256_of(storage.join(remote.path, stage, file.name)) == file.sha256
    assert {name.partition("/")[0] for name in storage.list_files(remote.path)} == {
        *stages,
        *("documents", "vocabulary", "examples", ".verified"),
    }
