"""Inputs as local files: where they are in a local workspace, copied, verified and shared from a store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, StageKey, record_of
from pipelines.contract.recipe import RunConfig
from pipelines.staging.staged import staged


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
