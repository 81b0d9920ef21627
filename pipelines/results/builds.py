"""How a stage's result is replaced: it is built in a separate directory, and exchanged by rename when it is complete.

    documents/            the result: its manifest names every file
    documents.building/   the build that will replace it; `scratch/key.json` marks it as this project's from the start
    pretraining.1/        a replaced result that is kept, until a command names it or `keep_finished` is exceeded

Until the exchange the earlier result stays valid, whatever happens to the new one. A directory with neither such a
mark nor a manifest of this project is never emptied or replaced.
"""

from __future__ import annotations

import os

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, StageKey, read_manifest
from pipelines.contract.workspace import MANIFEST_NAME, METRICS_NAME, SCRATCH_DIRECTORY
from pipelines.results.kept import delete_directory, next_kept_directory
from pipelines.results.marks import (
    EARLIER_SCRATCH_DIRECTORY,
    building_directory,
    is_open,
    is_resumable,
    place_of,
    read_mark,
    refuse_foreign,
    require_ours,
    write_mark,
)

_OWN_DIRECTORIES = (f"{SCRATCH_DIRECTORY}/", f"{EARLIER_SCRATCH_DIRECTORY}/")
_OWN_NAMES = (METRICS_NAME, MANIFEST_NAME)


def open_build(directory: str, key: StageKey, restart: str | None = None) -> bool:
    """Prepare the build of a stage: keep what an interrupted build of the same key has finished, clear any other.

    Args:
        directory: of the result, as for all functions here.
        key: of the new result.
        restart: start again; a name other than `RESTART` resumes an interrupted build that was restarted by that name.

    Returns:
        Whether there was a build of the same key.

    Raises:
        InputError: a directory that would be replaced or emptied is not this project's.
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


def install_build(directory: str, key: StageKey, keep_earlier: bool = False) -> str | None:
    """Replace the result with a build that has its manifest; may be repeated.

    Args:
        directory: of the result.
        key: of the build.
        keep_earlier: keep the result that is replaced under a numbered name.

    Returns:
        The directory in which the earlier result, or a user's files in it, are kept; None if nothing is.
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
            refuse_foreign(directory)
            storage.remove_directory(directory)
        _move_result(building, directory)
    elif not (storage.is_local(directory) and storage.exchange_directories(building, directory)):
        # Without an exchange there is briefly no result; the next run of the stage finds the build.
        replaced = next_kept_directory(directory)
        _move_result(directory, replaced)
        _move_result(building, directory)
        storage.remove_directory(storage.join(directory, SCRATCH_DIRECTORY))
        return _retire(replaced, directory, earlier, keep_earlier)
    return finish_exchange(directory, keep_earlier)


def has_leftovers(directory: str) -> bool:
    """Whether an exchange was interrupted, so that `finish_exchange` has something to do."""
    if not is_open(directory) and read_manifest(building_directory(directory)) is not None:
        return True
    return bool(storage.list_files(storage.join(directory, SCRATCH_DIRECTORY)))


def finish_exchange(directory: str, keep_earlier: bool = False) -> str | None:
    """Complete an interrupted exchange; call it under the stage's lock, before any other change there.

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
    # Only a replaced result that is not renamed yet has a manifest and no mark.
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
    """Delete the contents of the build directory, which has a mark or is empty; a foreign directory is refused."""
    read_mark(directory)
    delete_directory(building_directory(directory))


def _retire(replaced: str, directory: str, manifest: Manifest, is_kept: bool) -> str | None:
    """Keep or delete a replaced result, now in `replaced`; files that a user added or edited are always kept.

    Returns:
        The numbered directory in which something is kept; None if nothing is.
    """
    names, foreign = storage.list_files(replaced), foreign_names(replaced, manifest)
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


def foreign_names(directory: str, manifest: Manifest) -> list[str]:
    """Files of a result that its stage did not write, or that were edited since."""
    own = {*_OWN_NAMES, *(file.name for file in manifest.files if not _is_edited(directory, file))}
    return [
        name
        for name in storage.list_files(directory)
        if name not in own and not name.startswith(_OWN_DIRECTORIES) and not name.endswith(storage.TEMPORARY_SUFFIX)
    ]


def _is_edited(directory: str, file: FileRecord) -> bool:
    """Whether a stage's file was changed after its manifest was written, for example to fill [unused] entries."""
    uri = storage.join(directory, file.name)
    size_bytes = storage.file_size_bytes(uri)
    if size_bytes is None or not storage.is_local(directory):
        return False
    if size_bytes != file.size_bytes:
        return True
    path, manifest = storage.local_path(uri), storage.local_path(storage.join(directory, MANIFEST_NAME))
    # Only files newer than the manifest have to be read: the manifest is written last.
    return os.stat(path).st_mtime_ns > os.stat(manifest).st_mtime_ns and storage.sha256_of(uri) != file.sha256


def _remove_half_written(directory: str) -> None:
    """Remove the temporary files of killed workers."""
    for name in storage.list_files(directory):
        if name.endswith(storage.TEMPORARY_SUFFIX):
            storage.remove_file(storage.join(directory, name))
