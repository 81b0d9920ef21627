"""Records of finished units: kept for the same key, and counted only with their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey
from pipelines.results.builds import open_build
from pipelines.results.marks import building_directory
from pipelines.results.unfinished import count_finished, finish_unit, finished_unit, scratch_name, scratch_uri

KEY = StageKey("documents", 1, {"seed": 1}, {"corpus": "a"})


def test_units_survive_for_the_same_key_only(tmp_path: Path) -> None:
    directory = str(tmp_path / "documents")
    building = building_directory(directory)
    assert not open_build(directory, KEY)
    assert finished_unit(building, "parts/000001") is None
    finish_unit(building, "parts/000001", {"rows": 3})
    assert open_build(directory, KEY)
    assert count_finished(building) == 1
    assert finished_unit(building, "parts/000001") == {"rows": 3}
    other = StageKey("documents", 1, {"seed": 2}, {"corpus": "a"})
    assert not open_build(directory, other)
    assert finished_unit(building, "parts/000001") is None


def test_a_unit_counts_as_long_as_its_files_are_complete(tmp_path: Path) -> None:
    building = str(tmp_path / "documents.building")
    storage.write_bytes(scratch_uri(building, "parts/1.arrow"), b"whole")
    storage.write_bytes(f"{building}/shard.arrow", b"")
    finish_unit(building, "parts/1", [1], [scratch_name("parts/1.arrow"), "shard.arrow"])
    finish_unit(building, "shards/1", None)
    assert [count_finished(building, group) for group in ("parts", "shards", "others", "")] == [1, 1, 0, 2]
    assert finished_unit(building, "parts/1") == [1]
    storage.write_bytes(scratch_uri(building, "parts/1.arrow"), b"who")
    assert finished_unit(building, "parts/1") is None


def test_what_a_killed_worker_was_writing_is_cleared_away(tmp_path: Path) -> None:
    directory = str(tmp_path / "documents")
    building = building_directory(directory)
    open_build(directory, KEY)
    # Written by hand, because a live process cleans up after itself.
    with storage.atomic_output(f"{building}/shard.arrow"):
        (name,) = (name for name in storage.list_files(building) if name.startswith("shard"))
    storage.remove_file(f"{building}/shard.arrow")
    storage.write_bytes(f"{building}/{name}", b"half")
    open_build(directory, KEY)
    assert storage.list_files(building) == ["scratch/key.json"]


@pytest.mark.parametrize("record", [b"", b'{"rec', b"[1]", b'{"record": 1}', b'{"size_bytes": 3}', b"\xff"])
def test_a_damaged_record_is_none(tmp_path: Path, record: bytes) -> None:
    building = str(tmp_path / "documents.building")
    storage.write_bytes(scratch_uri(building, "parts/1.json"), record)
    assert finished_unit(building, "parts/1") is None
