"""Checkpoints in an object store, of ranks that share nothing but the store, which fails meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, StageKey, read_manifest, record_of, verify_file
from pipelines.stores.failures import StoreUnavailableError
from pipelines.stores.patience import PATIENCE_VARIABLE
from training.engine.processes import Processes
from training.resuming.checkpoint_writer import CheckpointWriter
from training.resuming.checkpoints import Retention
from training.resuming.progress import Progress
from training.resuming.remote_checkpoints import RemoteCheckpoints

KEY = StageKey("pretraining", 1, {"a": 1}, {})


class Together:
    """Exchanges values between ranks that are threads of this process."""

    def __init__(self, world_size: int) -> None:
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass(frozen=True)
class Rank(Processes):
    """One of several ranks in one process."""

    together: Together = field(default_factory=lambda: Together(1))

    def count(self, value: bool) -> int:
        return sum(self.together.exchange(self.rank, bool(value)))

    def from_first(self, value: Any) -> Any:
        return self.together.exchange(self.rank, value)[0]

    def barrier(self) -> None:
        self.together.exchange(self.rank, None)


class Engine:
    """Has one tensor to store; each rank has a file of its own, as with ZeRO."""

    def __init__(self, rank: int) -> None:
        self.rank, self.value = rank, 0.0

    def save(self, directory: str, tag: str, write: Callable[[Any, str], None]) -> None:
        os.makedirs(os.path.join(directory, tag))
        write({"x": torch.full((3,), self.value)}, os.path.join(directory, tag, f"part{self.rank}.pt"))


class Scene:
    """The checkpoints of `world_size` ranks below one URI, and uploads that wait while the store is closed."""

    def __init__(self, uri: str, scratch: Path, world_size: int, retention: Retention | None = None) -> None:
        self.uri, self.scratch, self.lines = uri, scratch, []
        self.is_open = threading.Event()
        self.is_open.set()
        self.refused_rank: int | None = None
        together = Together(world_size)
        self.ranks = [Rank(rank, world_size, torch.device("cpu"), together=together) for rank in range(world_size)]
        self.engines = [Engine(rank) for rank in range(world_size)]
        self.metrics: list[int] = []

        def opened(rank: Rank) -> RemoteCheckpoints:
            return RemoteCheckpoints(
                uri,
                str(scratch / f"node{rank.rank}"),
                KEY,
                retention or Retention(2),
                rank,
                CheckpointWriter(rank.rank, world_size, in_background=True),
                self.lines.append if rank.is_first else (lambda _line: None),
                upload=lambda directory, name, target: self.upload(rank.rank, directory, name, target),
                staged=lambda source, manifest: self.staged(scratch / f"copy{rank.rank}", source, manifest),
                before_manifest=lambda: self.metrics.append(len(self.names())),
            )

        self.stores = self.on_all(opened)

    lines: list[str]

    def on_all(self, act: Callable[[Any], Any]) -> list[Any]:
        """Call a function with each rank, all at once."""
        results: list[Any] = [None] * len(self.ranks)
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                results[index] = act(self.ranks[index])
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(self.ranks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        return results

    def save(self, step: int, seconds: float = 0.0) -> None:
        def act(rank: Rank) -> None:
            self.engines[rank.rank].value = float(step)
            progress = Progress(step=step, world_size=len(self.ranks))
            self.stores[rank.rank].save(self.engines[rank.rank], progress, seconds)

        self.on_all(act)

    def wait_for_local_files(self) -> None:
        """Until each rank has noted that its files are complete on its disk."""
        for rank in range(len(self.ranks)):
            while not (self.scratch / f"node{rank}/rank{rank:05d}/manifest.json").exists():
                time.sleep(0.05)

    def wait(self) -> None:
        self.on_all(lambda rank: self.stores[rank.rank].wait())

    def stop(self, step: int, seconds: float) -> None:
        self.on_all(lambda rank: self.stores[rank.rank].stop(Progress(step=step), seconds))

    def newest(self) -> Any:
        found = self.on_all(lambda rank: self.stores[rank.rank].newest())
        assert all(each == found[0] for each in found)
        return found[0]

    def names(self) -> list[str]:
        return [name.removeprefix("step-").lstrip("0") for name in self.stores[0].names()]

    def upload(self, rank: int, directory: str, name: str, uri: str) -> FileRecord:
        # A store that is away is tried until it is there again; a refusal is final.
        self.is_open.wait(30)
        if rank == self.refused_rank:
            raise InputError(f"{uri}: access denied")
        storage.write_bytes(uri, storage.read_bytes(storage.join(directory, name)))
        return record_of(directory, name, 0)

    def staged(self, copy: Path, uri: str, manifest: Manifest) -> str:
        directory = str(copy / uri.rpartition("/")[2])
        for file in manifest.files:
            storage.write_bytes(storage.join(directory, file.name), storage.read_bytes(storage.join(uri, file.name)))
            verify_file(directory, file)
        return directory


def test_a_checkpoint_counts_when_all_parts_are_stored(s3_workspace: str, tmp_path: Path) -> None:
    scene = Scene(f"{s3_workspace}/parts/checkpoints", tmp_path, 2, Retention(3))
    assert scene.newest() is None
    for step in (3, 5, 10, 15):
        scene.save(step)
        scene.wait()
    assert scene.names() == ["5", "10", "15"]
    assert len(scene.metrics) == 4, "what belongs to a checkpoint is stored before its manifest"
    names = storage.list_files(storage.join(scene.uri, "step-0000000015"))
    assert names == ["manifest.json", "part0.pt", "part1.pt"], "no record of a part stays"
    manifest = read_manifest(storage.join(scene.uri, "step-0000000015"))
    assert manifest is not None
    for file in manifest.files:
        verify_file(storage.join(scene.uri, "step-0000000015"), file)
    assert not storage.list_files(str(tmp_path / "node0"))
    # Half of a newer one, with a record of an earlier attempt: it does not count, and the next upload clears it.
    half = storage.join(scene.uri, "step-0000000020")
    storage.write_bytes(storage.join(half, "part0.pt"), b"half")
    storage.write_bytes(storage.join(half, "rank00001.0badcafe-1.part.json"), b"[]")
    assert scene.newest()[0] == "step-0000000015"
    # An object that was cut off: the one before is taken.
    storage.write_bytes(storage.join(scene.uri, "step-0000000015", "part1.pt"), b"cut")
    name, progress = scene.newest()
    assert (name, progress.step) == ("step-0000000010", 10)
    assert any("step-0000000015 is damaged" in line for line in scene.lines)
    copy = scene.stores[1]._local_copy(name)
    assert torch.load(os.path.join(copy, "part0.pt"))["x"].tolist() == [10.0] * 3
    scene.save(25)
    scene.wait()
    assert not storage.list_files(half)
    scene.on_all(lambda rank: scene.stores[rank.rank].drop_after("step-0000000015"))
    assert scene.names() == ["10", "15"]
    assert scene.newest()[0] == "step-0000000010"


def test_steps_continue_while_the_store_is_away(s3_workspace: str, tmp_path: Path) -> None:
    scene = Scene(f"{s3_workspace}/away/checkpoints", tmp_path, 2)
    scene.is_open.clear()
    scene.save(5)
    for step in (10, 15):
        scene.save(step)
        assert all(store.is_owed for store in scene.stores), "no step waits for the store, which opens later"
    assert [line for line in scene.lines if "no checkpoint yet" in line] == scene.lines[:1], "said once"
    assert "step 10: no checkpoint yet, as step-0000000005 is still being written" in scene.lines[0]
    # Asked to stop now, the run says what is missing.
    scene.wait_for_local_files()
    scene.stop(15, 2.5)
    assert "stopped by a signal after step 15; its checkpoint could not be written to" in scene.lines[-1]
    assert scene.lines[-1].endswith("from step-0000000005, which is on the local disk, elsewhere to start over")
    scene.is_open.set()
    scene.wait()
    assert scene.names() == ["5"]
    scene.save(20)
    assert not any(store.is_owed for store in scene.stores)
    scene.stop(20, 20.0)
    assert scene.names() == ["5", "20"]
    assert scene.lines[-1] == "stopped by a signal after step 20; a checkpoint is written, run again to resume"


def test_what_a_rank_may_not_write_is_tried_again(
    s3_workspace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.resuming.checkpoint_upload._FIRST_PAUSE_SECONDS", 0.1)
    scene = Scene(f"{s3_workspace}/refused/checkpoints", tmp_path, 2)
    scene.refused_rank = 1
    scene.save(5)
    time.sleep(1.0)
    scene.save(10)
    assert scene.newest() is None, "without the part of rank 1 there is no checkpoint"
    assert (tmp_path / "node1/rank00001/step-0000000005/part1.pt").exists(), "its file stays"
    scene.refused_rank = None
    scene.wait()
    assert scene.names() == ["5"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2, "said when it begins and when it ends"
    assert "pretraining: rank 1: checkpoint step-0000000005: not stored yet (s3://" in printed[0]
    assert printed[0].endswith("access denied); trying again while training continues")
    assert "checkpoint step-0000000005: stored, " in printed[1]
    scene.save(15)
    scene.wait()
    assert scene.names() == ["5", "15"]


def test_a_store_that_stays_away_fails_the_end_and_gets_the_last_checkpoint_from_the_next_run(
    s3_workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    scene = Scene(f"{s3_workspace}/gone/checkpoints", tmp_path, 2)
    scene.is_open.clear()
    scene.save(5)
    scene.wait_for_local_files()
    scene.save(20, seconds=0.5)
    with pytest.raises(StoreUnavailableError, match="step-0000000005: not stored within") as failed:
        scene.wait()
    assert "to resume from step-0000000020, which is on the local disk" in str(failed.value)
    uri, scratch = scene.uri, tmp_path
    monkeypatch.setenv(PATIENCE_VARIABLE, "30")

    # One disk is lost: what is on the other is not used.
    partly = Scene(uri, scratch / "partly", 2)
    shutil.copytree(scratch / "node0", scratch / "partly/node0")
    assert partly.newest() is None
    assert partly.lines == ["checkpoint step-0000000020 is not stored, and on the disks of 1 of 2 ranks: not used"]
    # Nor is it with another number of ranks, after a restart, or when the files are not those noted.
    fewer = Scene(uri, scratch / "partly", 1)
    assert fewer.newest() is None
    over = Scene(uri, scratch, 2)
    over.on_all(lambda rank: over.stores[rank.rank].start_over())
    assert over.newest() is None
    assert not over.lines

    again = Scene(uri, scratch, 2)
    name, progress = again.newest()
    assert (name, progress.step) == ("step-0000000020", 20)
    assert again.lines == ["checkpoint step-0000000020 is on the local disk only; storing it"]
    copy = again.stores[1]._local_copy(name)
    assert torch.load(os.path.join(copy, "part1.pt"))["x"].tolist() == [20.0] * 3
    once_more = Scene(uri, scratch, 2)
    assert once_more.newest()[0] == name
    assert not once_more.lines
