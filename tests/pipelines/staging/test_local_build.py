"""A local build: the directory itself in a local workspace, published files in a store."""

from __future__ import annotations

from pathlib import Path

from pipelines.contract import storage
from pipelines.contract.recipe import RunConfig
from pipelines.staging.local_build import LocalBuild


def test_build_of_a_local_workspace_is_the_directory_itself(tmp_path: Path) -> None:
    build = LocalBuild(str(tmp_path / "ws"), RunConfig(local_directory=str(tmp_path / "staging")))
    assert build.directory == str(tmp_path / "ws")
    build.publish(["absent"])
    build.publish_soon("absent")
    build.follow("absent", 0.01)
    build.close()
    build.discard()
    assert not (tmp_path / "staging").exists()


def test_published_files_are_in_the_store(tmp_path: Path, s3_workspace: str) -> None:
    build = LocalBuild(s3_workspace, RunConfig(local_directory=str(tmp_path)))
    place = Path(build.directory)
    (place / "sub").mkdir()
    for name in ("sub/a", "b", "metrics.jsonl"):
        (place / name).write_bytes(name.encode() * 100)
    build.follow("metrics.jsonl", 60.0)
    build.publish(["sub/a"])
    assert storage.list_files(s3_workspace) == ["sub/a"]
    build.publish_soon("b")
    with open(place / "metrics.jsonl", "ab") as stream:
        stream.write(b"last line")
    build.close()
    assert storage.list_files(s3_workspace) == ["b", "metrics.jsonl", "sub/a"]
    assert storage.read_bytes(storage.join(s3_workspace, "metrics.jsonl")).endswith(b"last line")
    build.discard()
    assert not place.exists()
