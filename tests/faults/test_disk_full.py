"""A full disk in each stage: one line with the path and the free space, and equal bytes once there is space again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.faults.scale import rounds
from tests.support.faults.small_disk import SmallDisk, error_lines, small_disk
from tests.support.preprocessing.small_run import RECIPE, run_all, write_corpus

pytestmark = pytest.mark.timeout(1_800)

DISK_BYTES = 24 << 20
RANKS = 2
TRAINING = """
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
[pretraining]
phases = [{ max_seq_length = 32, steps = 120, global_batch_size = 8 }]
num_warmup_steps = 1
eval_examples = 8
checkpoint_every_steps = 10
"""
STAGES = {
    "documents": "pipelines.shard_corpus",
    "vocabulary": "pipelines.train_vocabulary",
    "examples": "pipelines.build_examples",
}
ATTEMPTS = ((8_192, 2), (8_192, 1), (0, 1), (4_096, 1))
"""Bytes that are left free, and Beam's workers."""
CHECKPOINT_BYTES = 100_000
"""Less than a checkpoint takes."""


@dataclass(frozen=True)
class Finished:
    """A recipe, and a workspace that it built undisturbed."""

    recipe: str
    workspace: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder / "corpus")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(workspace=folder / "ws", corpus=folder / "corpus") + TRAINING)
    run_all(str(recipe))
    return Finished(str(recipe), str(folder / "ws"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(str(tmp_path / "disk"), DISK_BYTES) as found:
        yield found


def digests(directory: str) -> dict[str, str]:
    """The file entries of a stage's manifest, after verifying the files."""
    with open(os.path.join(directory, "manifest.json"), encoding="utf-8") as stream:
        files = json.load(stream)["files"]
    found = {}
    for file in files:
        found[file["name"]] = hashlib.sha256(Path(directory, file["name"]).read_bytes()).hexdigest()
    return found


def assert_one_line(disk: SmallDisk, exit_code: int, output: str) -> None:
    (line,) = error_lines(output)
    assert exit_code == 2, output
    assert disk.reason in line
    assert disk.path in line
    if disk.is_mounted:
        assert re.search(r"\d bytes are free.*; free space there and run the same command again$", line), line


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_a_rerun_gives_equal_bytes(finished: Finished, disk: SmallDisk, stage: str) -> None:
    workspace = os.path.join(disk.path, "ws")
    for before in list(STAGES)[: list(STAGES).index(stage)]:
        shutil.copytree(os.path.join(finished.workspace, before), os.path.join(workspace, before))
    os.makedirs(workspace, exist_ok=True)
    command = (STAGES[stage], finished.recipe, "--workspace", workspace)
    for free_bytes, workers in ATTEMPTS[: rounds(1, len(ATTEMPTS))]:
        disk.leave_free(free_bytes)
        exit_code, output = disk.run(*command, "--set", f"run.workers={workers}", fills_meanwhile=True)
        assert not os.path.exists(os.path.join(workspace, stage, "manifest.json"))
        assert_one_line(disk, exit_code, output)
        disk.make_room()
    exit_code, output = disk.run(*command)
    assert exit_code == 0, output
    assert digests(os.path.join(workspace, stage)) == digests(os.path.join(finished.workspace, stage))


def pretrain(
    disk: SmallDisk, recipe: str, workspace: str, meanwhile: Callable[[], None] = lambda: None
) -> list[tuple[int, str]]:
    """Exit code and output of each rank, none of which a launcher ends; `meanwhile` is called once they run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m", "training.pretrain", recipe, "--workspace", workspace]
    shared = {"WORLD_SIZE": str(RANKS), "LOCAL_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(RANKS):
            ranks.append(disk.start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        meanwhile()
        outputs = [process.communicate(timeout=900)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


@pytest.mark.slow
def test_a_checkpoint_on_a_full_disk_ends_every_rank_and_is_made_up_for(finished: Finished, disk: SmallDisk) -> None:
    reference = os.path.join(os.path.dirname(finished.workspace), "reference")
    workspace = os.path.join(disk.path, "ws")
    for stage in ("vocabulary", "examples"):
        for place in (reference, workspace):
            shutil.copytree(os.path.join(finished.workspace, stage), os.path.join(place, stage))
    undisturbed = pretrain(SmallDisk(reference, is_mounted=False), finished.recipe, reference)
    assert [exit_code for exit_code, _ in undisturbed] == [0] * RANKS, undisturbed

    def fill_after_the_first_checkpoint() -> None:
        # A disk that is full before the run starts is rejected at once.
        deadline = time.monotonic() + 600
        while not list(Path(workspace).glob("**/checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        disk.leave_free(CHECKPOINT_BYTES)

    if not disk.is_mounted:
        disk.leave_free(CHECKPOINT_BYTES)
    first, *others = pretrain(
        disk, finished.recipe, workspace, fill_after_the_first_checkpoint if disk.is_mounted else lambda: None
    )
    assert_one_line(disk, *first)
    assert "a checkpoint could not be written" in first[1]
    for exit_code, output in others:
        assert exit_code == 2, output
        assert len(error_lines(output)) <= 1
    disk.make_room()

    again = pretrain(disk, finished.recipe, workspace)
    assert [exit_code for exit_code, _ in again] == [0] * RANKS, again
    encoder = os.path.join("pretraining", "encoder", "model.safetensors")
    assert Path(workspace, encoder).read_bytes() == Path(reference, encoder).read_bytes()
