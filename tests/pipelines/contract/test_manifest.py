"""Manifests: when a stage is complete, and when it is out of date."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import (
    StageKey,
    read_manifest,
    record_of,
    require_manifest,
    verify_file,
    write_manifest,
)
from pipelines.contract.schemas import examples_schema
from pipelines.contract.workspace import MANIFEST_NAME

KEY = StageKey("documents", 1, {"num_shards": 2, "nested": {"size": 3}}, {"corpus": "abc"})


@pytest.fixture
def stage(tmp_path: Path) -> str:
    directory = str(tmp_path / "documents")
    storage.write_bytes(storage.join(directory, "train-00000-of-00001.arrow"), b"rows")
    files = [record_of(directory, "train-00000-of-00001.arrow", 4)]
    write_manifest(directory, KEY.manifest(files, {"documents_kept": 4}, "1"))
    return directory


def test_a_matching_stage_is_complete(stage: str) -> None:
    assert KEY.difference(stage) is None
    manifest = read_manifest(stage)
    assert manifest is not None
    assert [file.name for file in manifest.files_of("train")] == ["train-00000-of-00001.arrow"]
    assert manifest.files_of("heldout") == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (
            StageKey("documents", 1, {"num_shards": 8, "nested": {"size": 3}}, {"corpus": "abc"}),
            "num_shards was 2, is 8",
        ),
        (
            StageKey("documents", 1, {"num_shards": 2, "nested": {"size": 4}}, {"corpus": "abc"}),
            "nested.size was 3, is 4",
        ),
        (
            StageKey("documents", 1, {**KEY.config, "phases": [{"steps": 60, "length": 64}]}, KEY.inputs),
            'phases was null, is [{"steps": 60, "length": 64}]',
        ),
        (StageKey("documents", 1, {"num_shards": 2, "nested": {"size": 3}}, {"corpus": "x"}), "input corpus changed"),
        (StageKey("documents", 2, KEY.config, KEY.inputs), "built by an older version of this stage"),
    ],
)
def test_what_differs_is_said(stage: str, key: StageKey, reason: str) -> None:
    assert key.difference(stage) == reason


def test_missing_and_cut_files_are_noticed(stage: str) -> None:
    path = Path(stage) / "train-00000-of-00001.arrow"
    path.write_bytes(b"row")
    assert KEY.difference(stage) == "train-00000-of-00001.arrow is not of the size the manifest states"
    path.unlink()
    assert KEY.difference(stage) == "train-00000-of-00001.arrow is missing"


def test_a_flipped_byte_names_the_file(stage: str) -> None:
    manifest = require_manifest(stage, "documents", "it")
    verify_file(stage, manifest.files[0])
    (Path(stage) / "train-00000-of-00001.arrow").write_bytes(b"rowz")
    with pytest.raises(InputError, match=r"train-00000-of-00001\.arrow: damaged"):
        verify_file(stage, manifest.files[0])


def test_an_absent_or_foreign_manifest_is_one_clear_line(stage: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this stage is not complete; run python -m x first"):
        require_manifest(str(tmp_path / "nothing"), "documents", "python -m x")
    (Path(stage) / MANIFEST_NAME).write_text("{}")
    with pytest.raises(
        InputError, match=r"damaged, or not a manifest of this project .*; restore it from a copy, or move .* away"
    ):
        read_manifest(stage)


def test_what_a_newer_release_wrote_is_refused_and_never_called_out_of_date(stage: str) -> None:
    path = Path(stage) / MANIFEST_NAME
    text = path.read_text()
    path.write_text(text.replace('"schema_version": 1', '"schema_version": 2, "unknown": true'))
    with pytest.raises(InputError, match=r"written by a newer release \(schema 2; this one knows 1\)"):
        KEY.difference(stage)
    path.write_text(text.replace('"stage_version": 1', '"stage_version": 7'))
    with pytest.raises(InputError, match=r"written by a newer release \(version 7; this one knows 1\)"):
        KEY.difference(stage)


def test_a_manifest_of_another_stage_or_without_files_is_no_input(stage: str) -> None:
    path = Path(stage) / MANIFEST_NAME
    assert StageKey("examples", 1, KEY.config, KEY.inputs).difference(stage) is not None
    with pytest.raises(InputError, match=r"that of a stage named 'documents', expected 'examples'"):
        require_manifest(stage, "examples", "it")
    write_manifest(stage, KEY.manifest([], {}, "1"))
    with pytest.raises(InputError, match=r"its manifest names no files; run it again"):
        require_manifest(stage, "documents", "it")
    for damaged in (b"", b"[]", b'{"schema_version": "x"}', b"\xff\xfe", b'{"schema_version": 1, "stage"'):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged, or not a manifest of this project"):
            read_manifest(stage)


def test_the_digest_covers_the_output_only(stage: str) -> None:
    manifest = require_manifest(stage, "documents", "it")
    same_files = StageKey("documents", 1, {"num_shards": 9}, {"corpus": "other"}).manifest(manifest.files, {}, "2")
    assert same_files.digest == manifest.digest
    other_file = manifest.files[0].model_copy(update={"sha256": "0" * 64})
    assert KEY.manifest([other_file], {}, "1").digest != manifest.digest


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "sub" / "file")

    def fail() -> None:
        with storage.atomic_output(uri) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert storage.list_files(str(tmp_path)) == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match=r"nothing://x: not a path that Arrow can open"):
        storage.filesystem_of("nothing://x")


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert examples_schema(65_536, {}).field("input_ids").type.value_type == pa.uint16()
    assert examples_schema(65_537, {}).field("input_ids").type.value_type == pa.uint32()


def test_of_equally_long_lists_of_tables_the_setting_that_differs_is_said(tmp_path: Path) -> None:
    def key(*phases: dict[str, int]) -> StageKey:
        return StageKey("pretraining", 1, {"phases": list(phases)}, {})

    directory = str(tmp_path / "pretraining")
    write_manifest(directory, key({"steps": 60, "length": 32}, {"steps": 9, "length": 64}).manifest([], {}, "1"))
    assert key({"steps": 60, "length": 32}, {"length": 64, "steps": 9}).difference(directory) is None
    changed = key({"steps": 60, "length": 32}, {"steps": 7, "length": 64})
    assert changed.difference(directory) == "phases.1.steps was 9, is 7"
    assert str(key({"steps": 60, "length": 32}).difference(directory)).startswith("phases was [")
