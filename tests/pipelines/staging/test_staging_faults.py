"""Staging under faults, bounds and competition: verified files only, copied once, the bound kept."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest
from tests.support.object_store.fault_proxy import FaultProxy
from tests.support.object_store.s3_server import S3Server

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, record_of
from pipelines.staging.local_cache import LocalCache
from pipelines.staging.staged import StagedDirectory

SIZE = 400_000


def _stored(uri: str, name: str) -> FileRecord:
    storage.write_bytes(storage.join(uri, name), hashlib.sha256(name.encode()).digest() * (SIZE // 32))
    return record_of(uri, name, 1)


def _kept(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("files/*/*"))


def test_the_least_recently_used_file_makes_room_and_pinned_ones_stay(tmp_path: Path, s3_workspace: str) -> None:
    one, two, three = (_stored(s3_workspace, name) for name in "abc")
    first, second = (LocalCache(str(tmp_path), 2 * SIZE) for _ in range(2))
    for record in (one, two):
        path = first.fetch(storage.join(s3_workspace, record.name), record)
        first.release(record)
    os.utime(tmp_path / "files" / one.sha256[:2] / one.sha256, (2e9, 2e9))
    second.fetch(storage.join(s3_workspace, "c"), three)
    assert _kept(tmp_path) == sorted([one.sha256, three.sha256])
    assert not Path(path).exists()
    second.fetch(storage.join(s3_workspace, "a"), one)
    with pytest.raises(InputError, match=r"run\.local_directory_bytes = 800000: running stages use 800\.0 kB"):
        first.fetch(storage.join(s3_workspace, "b"), two)
    second.close()
    first.fetch(storage.join(s3_workspace, "b"), two)
    assert two.sha256 in _kept(tmp_path)


def test_a_view_holds_every_file_and_gives_way_when_it_is_released(tmp_path: Path, s3_workspace: str) -> None:
    records = [_stored(s3_workspace, name) for name in ("a", "sub/b")]
    cache = LocalCache(str(tmp_path), 2 * SIZE)
    directory = StagedDirectory(s3_workspace, records, cache)
    place = Path(directory.all())
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == ["a", "sub/b"]
    other = _stored(s3_workspace, "c")
    with pytest.raises(InputError, match="raise it, or wait for the other stages to end"):
        LocalCache(str(tmp_path), 2 * SIZE).fetch(storage.join(s3_workspace, "c"), other)
    directory.close()
    LocalCache(str(tmp_path), 2 * SIZE).fetch(storage.join(s3_workspace, "c"), other)
    assert other.sha256 in _kept(tmp_path)


def _fetch(directory: str, uri: str, record: FileRecord) -> bytes:
    return Path(LocalCache(directory, 1 << 30).fetch(uri, record)).read_bytes()


def test_processes_copy_a_file_once(tmp_path: Path, s3_server: S3Server, s3_proxy: FaultProxy) -> None:
    uri = s3_server.new_prefix()
    record = _stored(uri, "a")
    s3_proxy.add("slow", seconds=0.3, methods=("GET",))
    s3_proxy.requests.clear()
    arguments = (str(tmp_path), storage.join(uri, "a"), record)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        contents = pool.starmap(_fetch, [arguments, arguments])
    assert contents[0] == contents[1]
    assert hashlib.sha256(contents[0]).hexdigest() == record.sha256
    assert [method for method, path in s3_proxy.requests if "/a" in path].count("GET") == 1
    assert not list(tmp_path.glob("partial/*"))


def test_damage_in_the_store_is_one_line_and_leaves_nothing(tmp_path: Path, s3_workspace: str) -> None:
    record = _stored(s3_workspace, "a")
    storage.write_bytes(storage.join(s3_workspace, "a"), b"truncated")
    cache = LocalCache(str(tmp_path), 1 << 30)
    with pytest.raises(InputError, match=r"/a: damaged \(its 9 bytes are not the manifest's\); restore it"):
        cache.fetch(storage.join(s3_workspace, "a"), record)
    assert _kept(tmp_path) == []
    assert not list(tmp_path.glob("partial/*"))


def test_faults_during_staging_leave_the_same_file(tmp_path: Path, s3_server: S3Server, s3_proxy: FaultProxy) -> None:
    uri = s3_server.new_prefix()
    record = _stored(uri, "a")
    for kind in ("cut", "truncated", "status", "down"):
        s3_proxy.add(kind, requests=2, methods=("GET",))
    path = LocalCache(str(tmp_path), 1 << 30).fetch(storage.join(uri, "a"), record)
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == record.sha256


def test_what_a_killed_process_was_copying_is_removed(tmp_path: Path, s3_workspace: str) -> None:
    record = _stored(s3_workspace, "a")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / ("0" * 64)).write_bytes(b"half")
    LocalCache(str(tmp_path), 1 << 30).fetch(storage.join(s3_workspace, "a"), record)
    assert not list(tmp_path.glob("partial/*"))
