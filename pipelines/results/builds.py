"""How a stage's result is replaced: built in a directory of its own, and exchanged by rename when it is complete.

    documents/            the result: its manifest names every file
    documents.building/   what will take its place; `scratch/key.json` there marks it as ours from the first moment
    pretraining.1/        a result that has been replaced and is kept; only a command that names it removes it

Until the exchange the earlier result stays valid, whatever happens to the new one. A directory with neither our mark
nor our manifest is never emptied and never replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import uuid
from typing import Any

from pipelines.contract import storage
from pipelines.contract.manifest import MANIFEST_NAME, FileRecord, Manifest, StageKey, read_manifest
from pipelines.contract.recipe import InputError

SCRATCH_DIRECTORY = "scratch"
KEY_NAME = "key.json"
BUILDING_SUFFIX = ".building"
TRASH_DIRECTORY = ".clozeworks-trash"
"""What is deleted goes here first, by rename, so that a kill never leaves a directory that is half deleted."""

_EARLIER_SCRATCH = "building"
"""Where releases before build directories kept their mark, inside the stage's own directory."""
_OWN_DIRECTORIES = (f"{SCRATCH_DIRECTORY}/", f"{_EARLIER_SCRATCH}/")
_OWN_NAMES = ("metrics.jsonl", MANIFEST_NAME)
_MOST_NAMES_SHOWN = 3


def place_of(directory: str) -> str:
    """Where a stage's directory really lies: a person may have put a link there, to have the stage on another disk.

    What is exchanged with it must lie next to it, and the link shall stay.
    """
    if not storage.is_local(directory):
        return directory.rstrip("/")
    path = storage.local_path(directory)
    return os.path.realpath(path) if os.path.islink(path) else directory.rstrip("/")


def building_directory(directory: str) -> str:
    """Where the stage of `directory` is built until it is complete."""
    return place_of(directory) + BUILDING_SUFFIX


RESTART = "anew"
"""Value of `--restart` without one: whatever an interrupted build has finished is done again."""


def add_restart_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--restart`; with a name, the same command given again resumes the build that it began."""
    explained = "with a NAME, the same command given again resumes what it began"
    parser.add_argument("--restart", nargs="?", const=RESTART, metavar="NAME", help=f"{help_text}; {explained}")


def open_build(directory: str, key: StageKey, restart: str | None = None) -> bool:
    """Prepare the build of a stage: keep what an interrupted build of the same key has finished, clear any other.

    Args:
        directory: of the result, as for all functions here.
        key: what decides the new result.
        restart: begin anew; a name other than `RESTART` resumes an interrupted build that was restarted by that name.

    Returns:
        Was there a build of the same key?

    Raises:
        InputError: a directory that would be replaced or emptied is not ours.
    """
    require_ours(directory, key.stage)
    building = building_directory(directory)
    mark = read_mark(directory)
    if mark is not None and mark.get("stage") != key.stage:
        raise InputError(
            f"{building}: holds what a stage named {mark.get('stage')!r} wrote, not {key.stage!r}; move it away or "
            "choose another workspace"
        )
    if is_resumable(mark, key, restart):
        storage.remove_file(storage.join(building, MANIFEST_NAME))
        _remove_half_written(building)
        return True
    discard_build(directory)
    write_mark(directory, key, restart)
    return False


def is_resumable(mark: dict[str, Any] | None, key: StageKey, restart: str | None) -> bool:
    """Does a build's mark say that a run with this key and this `--restart` resumes it?"""
    if mark is None or mark["key"] != key.digest:
        return False
    return restart is None or (restart != RESTART and mark.get("restart") == restart)


def write_mark(directory: str, key: StageKey, restart: str | None = None) -> None:
    """Mark the build directory as ours, and as the build of a key."""
    mark_as_build(building_directory(directory), key, restart)


def mark_as_build(building: str, key: StageKey, restart: str | None = None) -> None:
    """Mark a directory as the build of a key, wherever it is."""
    mark = {
        "stage": key.stage,
        "key": key.digest,
        "config": key.config,
        "inputs": key.inputs,
        "restart": restart,
    }
    text = json.dumps(mark, sort_keys=True, ensure_ascii=False)
    storage.write_bytes(storage.join(building, SCRATCH_DIRECTORY, KEY_NAME), text.encode())


def read_mark(directory: str) -> dict[str, Any] | None:
    """What the build directory says of its build: `stage`, `key`, `config`, `inputs`; None where nothing is built.

    Raises:
        InputError: there is a directory of that name without our mark.
    """
    building = building_directory(directory)
    uri = storage.join(building, SCRATCH_DIRECTORY, KEY_NAME)
    if storage.file_size_bytes(uri) is not None:
        try:
            mark = json.loads(storage.read_bytes(uri))
            if isinstance(mark, dict) and isinstance(mark.get("key"), str):
                return mark
        except ValueError:
            pass
        raise InputError(f"{uri}: damaged; move {building} away to build the stage anew")
    # A result that was replaced and has not got its new name yet: its manifest is its mark.
    if (manifest := read_manifest(building)) is not None:
        return {"stage": manifest.stage, "key": _key_of(manifest).digest, "config": manifest.config, "inputs": {}}
    _refuse_foreign(building)
    return None


def is_open(directory: str) -> bool:
    """Is a build under way that has not taken the place of the result yet?"""
    mark = storage.join(building_directory(directory), SCRATCH_DIRECTORY, KEY_NAME)
    return storage.file_size_bytes(mark) is not None


def require_ours(directory: str, stage: str) -> None:
    """Check that a directory may be replaced: it is absent, empty, or holds a result of this stage.

    Raises:
        InputError: it holds something else, or it is where a disk is mounted, so that no other can take its place.
    """
    place = place_of(directory)
    if storage.is_local(directory) and os.path.ismount(place):
        raise InputError(
            f"{directory}: a disk is mounted right at {place}, which no new result could take the place of; make a "
            f"directory on that disk, and {directory} a link to it"
        )
    manifest = read_manifest(directory)
    if manifest is None:
        _refuse_foreign(directory)
    elif manifest.stage != stage:
        raise InputError(
            f"{directory}: holds the result of a stage named {manifest.stage!r}, not of {stage!r}; move it away or "
            "choose another workspace"
        )


def _refuse_foreign(directory: str) -> None:
    # A kill while the mark was written leaves nothing else.
    names = [name for name in storage.list_files(directory) if not _is_half_written_mark(name)]
    if names and storage.file_size_bytes(storage.join(directory, _EARLIER_SCRATCH, KEY_NAME)) is None:
        more = f" and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else ""
        shown = ", ".join(name.encode("unicode_escape").decode() for name in names[:_MOST_NAMES_SHOWN])
        raise InputError(
            f"{directory}: holds files that no stage of this project wrote ({shown}{more}); move them away or choose "
            "another workspace"
        )


def _is_half_written_mark(name: str) -> bool:
    return name.startswith(f"{SCRATCH_DIRECTORY}/{KEY_NAME}.") and name.endswith(storage.TEMPORARY_SUFFIX)


def install_build(directory: str, key: StageKey, keep_earlier: bool = False) -> str | None:
    """Put a build that has its manifest into the place of the result. Repeating it does no harm.

    Args:
        directory: of the result.
        key: of the build.
        keep_earlier: keep the result that is replaced under a numbered name.

    Returns:
        The directory in which the earlier result is kept, or what it held besides our files; None where nothing is.
    """
    directory = place_of(directory)
    building = building_directory(directory)
    manifest = read_manifest(building)
    if manifest is None:
        assert not is_open(directory), f"{building} has no manifest"
        assert key.difference(directory) is None, f"{directory} is not the result of this build"
        return finish_exchange(directory, keep_earlier)
    _remove_half_written(building)
    earlier = read_manifest(directory)
    if earlier is None:
        if storage.is_local(directory):
            _refuse_foreign(directory)
            storage.remove_directory(directory)
        _move_result(building, directory)
    elif not (storage.is_local(directory) and storage.exchange_directories(building, directory)):
        # Without an exchange there is no result for a moment; the next run of the stage finds the build.
        replaced = next_kept_directory(directory)
        _move_result(directory, replaced)
        _move_result(building, directory)
        storage.remove_directory(storage.join(directory, SCRATCH_DIRECTORY))
        return _retire(replaced, directory, earlier, keep_earlier)
    return finish_exchange(directory, keep_earlier)


def has_leftovers(directory: str) -> bool:
    """Has an exchange been cut off, so that `finish_exchange` has something to do?"""
    if not is_open(directory) and read_manifest(building_directory(directory)) is not None:
        return True
    return bool(storage.list_files(storage.join(directory, SCRATCH_DIRECTORY)))


def finish_exchange(directory: str, keep_earlier: bool = False) -> str | None:
    """Complete an exchange that was cut off; to be called under the stage's lock, before anything else is done there.

    Args:
        directory: of the result.
        keep_earlier: as for `install_build`.

    Returns:
        As `install_build`.
    """
    directory = place_of(directory)
    building = building_directory(directory)
    left, result = read_manifest(building), read_manifest(directory)
    is_marked = is_open(directory)
    if left is not None and result is None and (not is_marked or not storage.is_local(directory)):
        _move_result(building, directory)
        left, result = None, left
    if result is not None:
        storage.remove_directory(storage.join(directory, SCRATCH_DIRECTORY))
    if left is None or is_marked or (result is not None and left.stage != result.stage):
        return None
    # Only the result that was replaced has a manifest and no mark: it has not got its new name yet.
    return _retire(building, directory, left, keep_earlier)


def _move_result(source: str, target: str) -> None:
    """Rename a complete directory; on an object store file by file, the manifest last, so that a retry completes it."""
    if storage.is_local(target):
        storage.move_directory(source, target)
        return
    for name in storage.list_files(source):
        if name != MANIFEST_NAME and not name.startswith(f"{SCRATCH_DIRECTORY}/"):
            storage.move_file(storage.join(source, name), storage.join(target, name))
    storage.move_file(storage.join(source, MANIFEST_NAME), storage.join(target, MANIFEST_NAME))
    storage.remove_directory(source)


def discard_build(directory: str) -> None:
    """Delete what is in the build directory, which has our mark or is empty; a directory without it is refused."""
    read_mark(directory)
    delete_directory(building_directory(directory))


def delete_directory(directory: str) -> None:
    """Delete a directory that is known to be ours; a kill meanwhile leaves it complete or out of sight.

    What earlier kills left out of sight is deleted too.
    """
    if not storage.is_local(directory):
        storage.remove_directory(directory)
        return
    path = storage.local_path(directory)
    trash = storage.join(path.rpartition("/")[0], TRASH_DIRECTORY)
    while os.path.lexists(path):
        storage.make_directory(trash)
        # Who deletes another stage of the workspace may have taken the trash away in between.
        with contextlib.suppress(FileNotFoundError):
            storage.move_directory(path, storage.join(trash, uuid.uuid4().hex))
    try:
        shutil.rmtree(trash)
    except OSError as error:
        # Others delete here at the same time: they take something away first, or bring more. The last one has it all.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def next_kept_directory(directory: str) -> str:
    """The first numbered name after those in use: `pretraining.1`, `pretraining.2`, ..."""
    numbers = [int(kept.rpartition(".")[2]) for kept in kept_directories(directory)]
    number, place = max(numbers, default=0) + 1, place_of(directory)
    while storage.is_local(place) and os.path.lexists(storage.local_path(f"{place}.{number}")):
        number += 1  # a file of a person
    return f"{place}.{number}"


def kept_directories(directory: str) -> list[str]:
    """Earlier results of a stage that are kept, in the order of their numbers."""
    parent, _, name = place_of(directory).rpartition("/")
    found = []
    for other in storage.list_directories(parent or "/"):
        stem, _, number = other.rpartition(".")
        if stem == name and number.isdecimal():
            found.append((int(number), storage.join(parent, other)))
    return [kept for _, kept in sorted(found)]


def kept_result(directory: str, key: StageKey) -> str | None:
    """The newest kept result that was built with exactly this key; None where there is none."""
    for kept in reversed(kept_directories(directory)):
        try:
            if key.difference(kept) is None:
                return kept
        except InputError:
            continue  # damaged or newer: it stays where it is
    return None


def restore_kept(directory: str, kept: str) -> str | None:
    """Make a kept result the current one again; the current one takes its number.

    Returns:
        Where the result that was current is kept now; None where there was none.
    """
    directory = place_of(directory)
    if read_manifest(directory) is None:
        _refuse_foreign(directory)
        storage.remove_directory(directory)
        storage.move_directory(kept, directory)
        return None
    if storage.is_local(directory) and storage.exchange_directories(kept, directory):
        return kept
    other = next_kept_directory(directory)
    storage.move_directory(directory, other)
    storage.move_directory(kept, directory)
    return other


def set_build_aside(directory: str) -> str | None:
    """Keep an unfinished build under a numbered name; None where nothing is being built."""
    if read_mark(directory) is None:
        return None
    kept = next_kept_directory(directory)
    storage.move_directory(building_directory(directory), kept)
    return kept


def _key_of(manifest: Manifest) -> StageKey:
    return StageKey(manifest.stage, manifest.stage_version, manifest.config, manifest.inputs)


def _retire(replaced: str, directory: str, manifest: Manifest, is_kept: bool) -> str | None:
    """Keep or delete a replaced result, which is in `replaced` now; what a person added or edited is always kept.

    Returns:
        The numbered directory in which something is kept; None where nothing is.
    """
    own = {*_OWN_NAMES, *(file.name for file in manifest.files if not _is_edited(replaced, file))}
    names = storage.list_files(replaced)
    foreign = [
        name
        for name in names
        if name not in own and not name.startswith(_OWN_DIRECTORIES) and not name.endswith(storage.TEMPORARY_SUFFIX)
    ]
    if not is_kept and not foreign:
        delete_directory(replaced)
        return None
    kept = next_kept_directory(directory)
    if replaced.startswith(f"{directory.rstrip('/')}.") and replaced != building_directory(directory):
        kept = replaced
    else:
        storage.move_directory(replaced, kept)
    if not is_kept:
        for name in sorted({*names} - {*foreign}):
            storage.remove_file(storage.join(kept, name))
    return kept


def _is_edited(directory: str, file: FileRecord) -> bool:
    """Has a file of ours been changed since its manifest was written, as a person does who fills [unused] entries?"""
    uri = storage.join(directory, file.name)
    size_bytes = storage.file_size_bytes(uri)
    if size_bytes is None or not storage.is_local(directory):
        return False
    if size_bytes != file.size_bytes:
        return True
    path, manifest = storage.local_path(uri), storage.local_path(storage.join(directory, MANIFEST_NAME))
    # Only what is newer than the manifest has to be read: the manifest is written last.
    return os.stat(path).st_mtime_ns > os.stat(manifest).st_mtime_ns and storage.sha256_of(uri) != file.sha256


def _remove_half_written(directory: str) -> None:
    """A killed worker leaves what it was writing under its temporary name."""
    for name in storage.list_files(directory):
        if name.endswith(storage.TEMPORARY_SUFFIX):
            storage.remove_file(storage.join(directory, name))
