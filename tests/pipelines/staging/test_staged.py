"""Inputs as local files: where they are in a local workspace, copied, verified and shared from a store."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, StageKey, record_of
from pipelines.contract.recipe import RunConfig
from pipelines.staging.local_cache import LocalCache
from pipelines.staging.staged import StagedDirectory, staged


def _write(uri: str, name: str, data: bytes) -> FileRecord:
    storage.write_bytes(storage.join(uri, name), data)
    return record_of(uri, name, 1)


def _run(tmp_path: Path) -> RunConfig:
    return RunConfig(local_directory=str(tmp_path / "staging"))


def test_files_of_a_local_workspace_are_used_where_they_are(tmp_path: Path) -> None:
    record = _write(str(tmp_path / "ws"), "sub/a", b"abc")
    manifest = StageKey("documents", 1, {}, {}).manifest([record], {}, "1")
    directory = staged(str(tmp_path / "ws"), manifest, _run(tmp_path))
    directory.prefetch(["sub/a"])
    assert directory.path("sub/a") == str(tmp_path / "ws/sub/a")
    assert directory.all() == str(tmp_path / "ws")
    directory.close()
    assert not (tmp_path / "staging").exists()


def test_files_of_a_store_are_copied_once_and_shared(tmp_path: Path, s3_workspace: str) -> None:
    records = [_write(s3_workspace, name, name.encode() * 1000) for name in ("a", "sub/b", "c")]
    manifest = StageKey("documents", 1, {}, {}).manifest(records, {}, "1")
    first, second = (staged(s3_workspace, manifest, _run(tmp_path)) for _ in range(2))
    first.prefetch(["c", "a"])
    path = first.path("a")
    assert Path(path).read_bytes() == b"a" * 1000
    assert hashlib.sha256(b"a" * 1000).hexdigest() in path
    assert second.path("a") == path
    storage.remove_directory(s3_workspace)
    first.close()
    whole = second.path("c")
    assert Path(whole).read_bytes() == b"c" * 1000
    with pytest.raises(InputError, match=r"sub/b: missing, though the manifest lists it"):
        second.all()


class _SlowCache(LocalCache):
    """Stands for a cache whose store is slow: a fetch ends when it is allowed to."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory, 1 << 20)
        self.started: list[str] = []
        self.ended: list[str] = []
        self.may_end, self.is_reached = threading.Event(), threading.Event()

    def fetch(self, uri: str, record: FileRecord) -> str:
        self.started.append(record.name)
        if record.name == "last":
            self.is_reached.set()
        else:
            self.may_end.wait(60)
            self.ended.append(record.name)
        return uri

    def release(self, record: FileRecord) -> None:
        pass


def test_a_new_order_does_not_wait_for_the_files_that_are_being_copied(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "last")
    cache = _SlowCache(str(tmp_path))
    records = [FileRecord(name=name, rows=1, size_bytes=1, sha256="0" * 64, statistics={}) for name in names]
    directory = StagedDirectory("s3://bucket/run", records, cache)
    directory.prefetch(["a", "b", "c", "d"])
    directory.prefetch(["last"])
    assert cache.is_reached.wait(30)
    assert not cache.ended, "it has waited for them"
    cache.may_end.set()
    directory.close()
    assert not {"c", "d"} & set(cache.started), "the earlier order was not given up"
