"""Earlier results that are kept under numbered names, and deletion that a kill cannot leave half done."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.contract.workspace import TRASH_DIRECTORY
from pipelines.results.marks import building_directory, place_of, read_mark, refuse_foreign


def delete_directory(directory: str) -> None:
    """Delete a directory of this project; a kill meanwhile leaves it complete or in the trash.

    What earlier kills left in the trash is deleted too.
    """
    if not storage.is_local(directory):
        storage.remove_directory(directory)
        return
    path = storage.local_path(directory)
    trash = storage.join(path.rpartition("/")[0], TRASH_DIRECTORY)
    while os.path.lexists(path):
        storage.make_directory(trash)
        # A process that deletes another stage of the workspace may have removed the trash meanwhile.
        with contextlib.suppress(FileNotFoundError):
            storage.move_directory(path, storage.join(trash, uuid.uuid4().hex))
    try:
        shutil.rmtree(trash)
    except OSError as error:
        # Other processes delete here at the same time, and remove or add entries. The last one removes everything.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def next_kept_directory(directory: str) -> str:
    """The first numbered name after those in use: `pretraining.1`, `pretraining.2`, ..."""
    numbers = [int(kept.rpartition(".")[2]) for kept in kept_directories(directory)]
    number, place = max(numbers, default=0) + 1, place_of(directory)
    while storage.is_local(place) and os.path.lexists(storage.local_path(f"{place}.{number}")):
        number += 1  # a user's file
    return f"{place}.{number}"


def kept_directories(directory: str) -> list[str]:
    """Kept results of a stage, in the order of their numbers."""
    parent, _, name = place_of(directory).rpartition("/")
    found = []
    for other in storage.list_directories(parent or "/"):
        stem, _, number = other.rpartition(".")
        if stem == name and number.isdecimal():
            found.append((int(number), storage.join(parent, other)))
    return [kept for _, kept in sorted(found)]


def kept_result(directory: str, key: StageKey) -> str | None:
    """The newest kept result that was built with exactly this key; None if there is none."""
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
        Where the previously current result is kept now; None if there was none.
    """
    directory = place_of(directory)
    if read_manifest(directory) is None:
        refuse_foreign(directory)
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
    """Keep an unfinished build under a numbered name; None if nothing is being built."""
    if read_mark(directory) is None:
        return None
    kept = next_kept_directory(directory)
    storage.move_directory(building_directory(directory), kept)
    return kept
