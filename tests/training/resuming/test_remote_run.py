"""Pre-training in an object store: nodes without a shared disk, killed, and resumed by nodes with empty disks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import REPOSITORY, SUPPORT
from tests.support.training.synthetic_run import Workspace, environment, free_port

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest

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
