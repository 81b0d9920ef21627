"""Verified once per content: a same-size change is found, an unchanged file is not read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, StageKey, record_of, require_manifest, write_manifest
from pipelines.results import verification
from pipelines.results.verification import Verification, require_stage, verification_before_reading, verify_stage

KEY = StageKey("examples", 1, {}, {})


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    directory = str(tmp_path / "run/examples")
    for number in range(3):
        storage.write_bytes(f"{directory}/{number}.arrow", b"rows" * 100)
    records = [record_of(directory, f"{number}.arrow", 1) for number in range(3)]
    write_manifest(directory, KEY.manifest(records, {}, "1"))
    return str(tmp_path / "run")


def test_each_content_is_read_once(workspace: str) -> None:
    manifest = require_stage(workspace, "examples", "it")
    assert verify_stage(workspace, "examples", manifest) == 0
    path = Path(workspace, "examples/1.arrow")
    os.utime(path, ns=(1, 1))
    assert verify_stage(workspace, "examples", manifest) == 1
    shutil.copy2(path, f"{path}.copy")
    os.replace(f"{path}.copy", path)  # another inode with the same size and time
    assert verify_stage(workspace, "examples", manifest) == 1
    assert verify_stage(workspace, "examples", manifest) == 0


def test_a_flipped_bit_is_found_though_the_file_was_verified(workspace: str) -> None:
    manifest = require_stage(workspace, "examples", "it")
    path = Path(workspace, "examples/2.arrow")
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(InputError, match=r"examples/2\.arrow: damaged .*--restart"):
            verify_stage(workspace, "examples", manifest)
    assert verify_stage(workspace, "examples", manifest, lambda file: file.name != "2.arrow") == 0
    path.unlink()
    with pytest.raises(InputError, match=r"2\.arrow: missing"):
        verify_stage(workspace, "examples", manifest)


@pytest.mark.parametrize("memory", [b"", b"[1]", b'{"0.arrow": 3}', b"\xff"])
def test_a_damaged_memory_is_no_memory(workspace: str, memory: bytes) -> None:
    storage.write_bytes(f"{workspace}/.verified/examples.json", memory)
    assert verify_stage(workspace, "examples", require_stage(workspace, "examples", "it")) == 0


def test_another_manifest_with_other_checksums_is_verified_anew(workspace: str) -> None:
    manifest = require_stage(workspace, "examples", "it")
    files = tuple(file.model_copy(update={"sha256": "0" * 64}) for file in manifest.files)
    with pytest.raises(InputError, match=r"damaged"):
        verify_stage(workspace, "examples", manifest.model_copy(update={"files": files}))


def test_a_file_that_is_exchanged_while_it_is_read_is_not_remembered(
    workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = require_stage(workspace, "examples", "it", lambda file: file.name == "0.arrow")
    original = verification.verify_file

    def verify_then_exchange(directory: str, file: FileRecord) -> None:
        original(directory, file)
        storage.write_bytes(f"{directory}/{file.name}", b"swor" * 100)

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify_file", verify_then_exchange)
        verify_stage(workspace, "examples", manifest, lambda file: file.name == "1.arrow")
    with pytest.raises(InputError, match=r"1\.arrow: damaged"):
        verify_stage(workspace, "examples", manifest)


def test_a_memory_that_cannot_be_kept_stops_nothing(workspace: str) -> None:
    Path(workspace, ".verified").write_text("a file")
    for _ in range(2):
        assert verify_stage(workspace, "examples", require_stage(workspace, "examples", "it")) == 3


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_processes_that_share_the_files_read_each_once(
    workspace: str, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = require_manifest(f"{workspace}/examples", "examples", "it")
    original, read = verification.verify_file, list[str]()

    def counted(directory: str, file: FileRecord) -> None:
        read.append(file.name)
        original(directory, file)

    monkeypatch.setattr(verification, "verify_file", counted)

    def opened() -> list[Verification]:
        return [verification_before_reading(workspace, "examples", manifest, lambda _: True) for _ in range(of)]

    shared = opened()
    for number, own in enumerate(shared):
        own.verify(number, of)
    assert sorted(read) == ["0.arrow", "1.arrow", "2.arrow"]
    shared[0].record()
    assert [own.pending for own in opened()] == [[]] * of

    read.clear()
    Path(workspace, "examples/1.arrow").write_bytes(b"swor" * 100)
    again, told = opened(), list[str]()
    for number, own in enumerate(again):
        try:
            own.verify(number, of)
        except InputError as error:
            told.append(str(error))
    assert read == ["1.arrow"]
    (message,) = told
    assert "1.arrow: damaged" in message
