"""Records of finished units: kept for the same key, cleared for another, and no trace once the stage is complete."""

from __future__ import annotations

from pathlib import Path

from pipelines import storage
from pipelines.contract import MANIFEST_NAME, StageKey
from pipelines.unfinished import (
    close_stage,
    count_finished,
    finish_unit,
    finished_unit,
    open_stage,
    scratch_name,
    scratch_uri,
)


def test_units_survive_for_the_same_key_only(tmp_path: Path) -> None:
    directory, key = str(tmp_path / "stage"), StageKey("documents", 1, {"seed": 1}, {"corpus": "a"})
    assert open_stage(directory, key) == 0
    assert finished_unit(directory, "parts/000001") is None
    finish_unit(directory, "parts/000001", {"rows": 3})
    assert open_stage(directory, key) == 1
    assert finished_unit(directory, "parts/000001") == {"rows": 3}
    other = StageKey("documents", 1, {"seed": 2}, {"corpus": "a"})
    assert open_stage(directory, other) == 0
    assert finished_unit(directory, "parts/000001") is None


def test_a_stage_that_is_rebuilt_loses_its_manifest_and_its_old_files(tmp_path: Path) -> None:
    directory, key = str(tmp_path / "stage"), StageKey("documents", 1, {}, {})
    storage.write_bytes(f"{directory}/{MANIFEST_NAME}", b"{}")
    storage.write_bytes(f"{directory}/train-00000-of-00001.arrow", b"old")
    open_stage(directory, key)
    assert storage.list_files(directory) == ["building/key.json"]
    storage.write_bytes(scratch_uri(directory, "parts/000001.arrow"), b"new")
    close_stage(directory)
    assert storage.list_files(directory) == []


def test_a_unit_counts_as_long_as_its_files_are_whole(tmp_path: Path) -> None:
    directory, key = str(tmp_path / "stage"), StageKey("documents", 1, {}, {})
    open_stage(directory, key)
    storage.write_bytes(scratch_uri(directory, "parts/1.arrow"), b"whole")
    storage.write_bytes(f"{directory}/shard.arrow", b"")
    finish_unit(directory, "parts/1", [1], [scratch_name("parts/1.arrow"), "shard.arrow"])
    finish_unit(directory, "shards/1", None)
    assert [count_finished(directory, group) for group in ("parts", "shards", "others", "")] == [1, 1, 0, 2]
    assert finished_unit(directory, "parts/1") == [1]
    storage.write_bytes(scratch_uri(directory, "parts/1.arrow"), b"who")
    assert finished_unit(directory, "parts/1") is None


def test_what_a_killed_worker_was_writing_is_cleared_away(tmp_path: Path) -> None:
    directory, key = str(tmp_path / "stage"), StageKey("documents", 1, {}, {})
    open_stage(directory, key)
    # By hand, for a process that is still alive tidies up after itself.
    with storage.atomic_output(f"{directory}/shard.arrow"):
        (name,) = (name for name in storage.list_files(directory) if name.startswith("shard"))
    storage.remove_file(f"{directory}/shard.arrow")
    storage.write_bytes(f"{directory}/{name}", b"half")
    open_stage(directory, key)
    assert storage.list_files(directory) == ["building/key.json"]
