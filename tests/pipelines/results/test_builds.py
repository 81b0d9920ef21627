"""Replacing a result: the old one is valid until the new one is complete, and foreign files are not touched."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest, record_of, write_manifest
from pipelines.contract.workspace import KEY_NAME, SCRATCH_DIRECTORY, TRASH_DIRECTORY
from pipelines.results import kept
from pipelines.results.builds import finish_exchange, install_build, open_build
from pipelines.results.kept import kept_directories
from pipelines.results.marks import building_directory


def key_of(value: int) -> StageKey:
    return StageKey("documents", 1, {"value": value}, {"corpus": "a"})


def fill(directory: str, value: int) -> None:
    """What a job does between `open_build` and `install_build`."""
    building = building_directory(directory)
    storage.write_bytes(storage.join(building, "train.arrow"), str(value).encode())
    storage.write_bytes(storage.join(building, SCRATCH_DIRECTORY, "parts/1"), b"scratch")
    record = record_of(building, "train.arrow", 1)
    write_manifest(building, key_of(value).manifest([record], {}, "1"))


def build(directory: str, value: int, keep_earlier: bool = False) -> str | None:
    open_build(directory, key_of(value))
    fill(directory, value)
    return install_build(directory, key_of(value), keep_earlier)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "documents")


def test_a_first_and_a_second_result_take_their_place(directory: str, tmp_path: Path) -> None:
    assert build(directory, 1) is None
    assert key_of(1).difference(directory) is None
    open_build(directory, key_of(2))
    assert key_of(1).difference(directory) is None
    fill(directory, 2)
    assert key_of(1).difference(directory) is None
    assert install_build(directory, key_of(2)) is None
    assert key_of(2).difference(directory) is None
    assert sorted(os.listdir(tmp_path)) == ["documents"]
    assert storage.list_files(directory) == ["manifest.json", "train.arrow"]
    # A runner may repeat the last step.
    assert install_build(directory, key_of(2)) is None


def test_an_earlier_result_may_be_kept_under_a_number(directory: str) -> None:
    build(directory, 1, keep_earlier=True)
    assert build(directory, 2, keep_earlier=True) == f"{directory}.1"
    assert build(directory, 3, keep_earlier=True) == f"{directory}.2"
    assert kept_directories(directory) == [f"{directory}.1", f"{directory}.2"]
    assert key_of(1).difference(f"{directory}.1") is None
    assert kept.kept_result(directory, key_of(1)) == f"{directory}.1"
    assert kept.kept_result(directory, key_of(7)) is None
    assert kept.restore_kept(directory, f"{directory}.1") == f"{directory}.1"
    assert key_of(1).difference(directory) is None
    assert key_of(3).difference(f"{directory}.1") is None


@pytest.mark.parametrize("place", ["documents", "documents.building"])
def test_a_directory_without_our_mark_is_refused_and_stays(directory: str, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "novel\x1b[2J.txt").write_text("Call me Ishmael.")
    with pytest.raises(InputError, match=r"holds files that no stage of this project wrote \(novel\\x1b\[2J\.txt\)"):
        open_build(directory, key_of(1))
    assert (tmp_path / place / "novel\x1b[2J.txt").read_text() == "Call me Ishmael."


def test_the_result_of_another_stage_is_refused(directory: str) -> None:
    build(directory, 1)
    with pytest.raises(InputError, match=r"holds the result of a stage named 'documents', not of 'examples'"):
        open_build(directory, StageKey("examples", 1, {}, {}))
    assert key_of(1).difference(directory) is None


def test_files_of_a_person_in_a_stage_directory_survive_its_replacement(directory: str) -> None:
    build(directory, 1)
    Path(directory, "notes.txt").write_text("mine")
    assert build(directory, 2) == f"{directory}.1"
    assert storage.list_files(f"{directory}.1") == ["notes.txt"]
    assert key_of(2).difference(directory) is None


def test_empty_directories_and_those_of_earlier_releases_are_taken(directory: str) -> None:
    os.mkdir(directory)
    storage.write_bytes(storage.join(directory, "building/key.json"), b'"digest"')
    storage.write_bytes(storage.join(directory, "train.arrow"), b"half")
    build(directory, 1)
    assert storage.list_files(directory) == ["manifest.json", "train.arrow"]


def test_without_an_exchange_two_renames_do(directory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "exchange_directories", lambda *_: False)
    build(directory, 1)
    assert build(directory, 2) is None
    assert build(directory, 3, keep_earlier=True) == f"{directory}.1"
    assert key_of(3).difference(directory) is None
    assert key_of(2).difference(f"{directory}.1") is None
    assert sorted(os.listdir(tmp_path)) == ["documents", "documents.1"]


class Crash(BaseException):
    """Like a kill: nothing catches it."""


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("keep_earlier", [True, False])
def test_a_crash_at_any_step_loses_no_complete_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, keep_earlier: bool
) -> None:
    """Stop before each change of the file system in turn; the next run completes, and the old result is never lost."""
    names = ("move_directory", "exchange_directories", "remove_directory", "remove_file", "write_bytes")
    originals: dict[str, Callable[..., object]] = {name: getattr(storage, name) for name in names}
    for crash_at in itertools.count():
        directory = str(tmp_path / str(crash_at) / "documents")
        build(directory, 1, keep_earlier)
        calls = itertools.count()

        def counted(
            name: str, *arguments: object, calls: itertools.count[int] = calls, crash_at: int = crash_at
        ) -> object:
            if next(calls) == crash_at:
                raise Crash
            if name == "exchange_directories" and not can_exchange:
                return False
            return originals[name](*arguments)

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(storage, name, lambda *arguments, name=name: counted(name, *arguments))
            try:
                build(directory, 2, keep_earlier)
                crashed = False
            except Crash:
                crashed = True
        there = [path for path in (directory, *kept_directories(directory)) if key_of(1).difference(path) is None]
        is_replaced = key_of(2).difference(directory) is None
        # Kept results stay, others until the new one is complete.
        building = building_directory(directory)
        assert there or is_replaced or key_of(1).difference(building) is None, (crash_at, os.listdir(tmp_path))
        finish_exchange(directory, keep_earlier)
        if key_of(2).difference(directory) is not None:
            build(directory, 2, keep_earlier)
        assert storage.list_files(directory) == ["manifest.json", "train.arrow"]
        assert read_manifest(building) is None
        if keep_earlier:
            assert key_of(1).difference(f"{directory}.1") is None
        elif can_exchange:
            build(directory, 3)
            assert sorted(os.listdir(Path(directory).parent)) == ["documents"]
        if not crashed:
            assert crash_at > 4
            return


def test_an_interrupted_deletion_is_out_of_sight_and_finished_later(directory: str, tmp_path: Path) -> None:
    (tmp_path / TRASH_DIRECTORY / "old").mkdir(parents=True)
    (tmp_path / TRASH_DIRECTORY / "old/train.arrow").write_text("half deleted")
    build(directory, 1)
    build(directory, 2)
    assert sorted(os.listdir(tmp_path)) == ["documents"]


KILLED = """
import sys, time
from test_builds import build
value = int(sys.argv[2])
print("go", flush=True)
while True:
    build(sys.argv[1], value)
    value += 1
"""


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_valid_result(directory: str) -> None:
    build(directory, 0)
    for number in range(5):
        importable = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": importable}
        command = [sys.executable, "-c", KILLED, directory, str(1000 * number + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2 + 0.037 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finish_exchange(directory)
        manifest = read_manifest(directory)
        assert manifest is not None
        assert Path(directory, "train.arrow").read_text() == str(manifest.config["value"])
        build(directory, 0)


@pytest.mark.parametrize("text", ["99", "2"])
def test_a_file_that_a_person_edited_survives_the_replacement_of_its_stage(directory: str, text: str) -> None:
    build(directory, 1)
    edited = Path(directory, "train.arrow")
    edited.write_text(text)
    written = Path(directory, "manifest.json").stat().st_mtime_ns
    os.utime(edited, ns=(written + 10**9, written + 10**9))
    assert build(directory, 2) == f"{directory}.1"
    assert Path(f"{directory}.1", "train.arrow").read_text() == text
    assert storage.list_files(f"{directory}.1") == ["train.arrow"]


def test_a_copied_result_was_not_edited(directory: str) -> None:
    build(directory, 1)
    os.utime(Path(directory, "train.arrow"))
    assert build(directory, 2) is None


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_stage_that_is_linked_to_another_disk_stays_there(
    directory: str, tmp_path: Path, target_exists: bool
) -> None:
    target = tmp_path / "disk" / "texts"
    target.parent.mkdir()
    if target_exists:
        target.mkdir()
    os.symlink("disk/texts", directory)
    build(directory, 1)
    assert build(directory, 2, keep_earlier=True) == f"{target}.1"
    assert kept.kept_directories(directory) == [f"{target}.1"]
    assert kept.restore_kept(directory, f"{target}.1") == f"{target}.1"
    assert os.readlink(directory) == "disk/texts"
    assert key_of(1).difference(str(target)) is None
    assert sorted(os.listdir(target.parent)) == ["texts", "texts.1"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "documents"]


def test_who_deletes_at_the_same_time_hinders_no_deletion(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process empties the shared trash just before another's rename: the old build must not be taken for new."""
    open_build(directory, key_of(1))
    fill(directory, 1)
    original = storage.move_directory
    failures = iter([True, False])

    def move(source: str, target: str) -> None:
        if next(failures):
            os.rmdir(tmp_path / TRASH_DIRECTORY)
        original(source, target)

    monkeypatch.setattr(storage, "move_directory", move)
    open_build(directory, key_of(2))
    assert storage.list_files(building_directory(directory)) == ["scratch/key.json"]
    assert sorted(os.listdir(tmp_path)) == ["documents.building"]


def test_a_kill_while_the_mark_is_written_leaves_a_directory_of_ours(directory: str) -> None:
    half = f"{building_directory(directory)}/{SCRATCH_DIRECTORY}/{KEY_NAME}.0f{storage.TEMPORARY_SUFFIX}"
    storage.write_bytes(half, b'{"sta')
    build(directory, 1)
    assert storage.list_files(directory) == ["manifest.json", "train.arrow"]


@pytest.mark.parametrize("is_complete", [True, False])
def test_what_another_stage_wrote_into_the_build_directory_is_refused(directory: str, is_complete: bool) -> None:
    build(directory, 1)
    building = Path(building_directory(directory))
    storage.write_bytes(str(building / "vocab.txt"), b"a\n")
    other = StageKey("vocabulary", 1, {}, {})
    if is_complete:
        write_manifest(str(building), other.manifest([record_of(str(building), "vocab.txt", 1)], {}, "1"))
    else:
        storage.write_bytes(str(building / "scratch/key.json"), b'{"stage": "vocabulary", "key": "a"}')
    finish_exchange(directory)
    with pytest.raises(InputError, match=r"building: holds what a stage named 'vocabulary' wrote, not 'documents'"):
        open_build(directory, key_of(2))
    assert (building / "vocab.txt").exists()


def test_a_kept_result_takes_no_name_that_a_file_has(directory: str) -> None:
    build(directory, 1)
    Path(f"{directory}.1").write_text("mine")
    assert build(directory, 2, keep_earlier=True) == f"{directory}.2"
    assert Path(f"{directory}.1").read_text() == "mine"


@pytest.mark.parametrize("is_link", [True, False])
def test_a_stage_where_a_disk_is_mounted_is_refused_before_it_is_built(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_link: bool
) -> None:
    mounted = str(tmp_path / "disk") if is_link else directory
    os.mkdir(mounted)
    if is_link:
        os.symlink(mounted, directory)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mounted)
    with pytest.raises(InputError, match=r"documents: .* is a mount point.*link to it"):
        open_build(directory, key_of(1))
    assert not os.path.exists(building_directory(directory))
