"""A folder for temporary files that the next run removes if this one is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator

_PREFIX = "clozeworks-scratch-"
_LOCK_NAME = "lock"
_YOUNG_SECONDS = 60.0
"""A younger folder may not have its lock yet."""


@contextlib.contextmanager
def scratch_directory() -> Iterator[str]:
    """Create a folder for the temporary files of this process, for the duration of the block.

    Its owner holds a lock in it, which the kernel releases whenever that process ends. Folders of this user whose lock
    is free were left by killed runs, and are removed first.
    """
    usual = tempfile.gettempdir()
    remove_abandoned(usual)
    path = tempfile.mkdtemp(prefix=_PREFIX, dir=usual)
    before = tempfile.tempdir
    with open(os.path.join(path, _LOCK_NAME), "xb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tempfile.tempdir = path
        try:
            yield path
        finally:
            tempfile.tempdir = before
            shutil.rmtree(path, ignore_errors=True)


def remove_abandoned(root: str) -> list[str]:
    """Remove the scratch folders below `root` that are this user's and have no owner any more; return their paths."""
    removed = []
    with os.scandir(root) as entries:
        candidates = [entry for entry in entries if entry.name.startswith(_PREFIX)]
    for entry in candidates:
        with contextlib.suppress(FileNotFoundError):
            if _is_abandoned(entry):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(entry.path)
    return removed


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    facts = entry.stat(follow_symlinks=False)
    if not entry.is_dir(follow_symlinks=False) or facts.st_uid != os.getuid():
        return False
    # A time in the future means that a clock has jumped and the age is unknown.
    if 0 <= time.time() - facts.st_mtime < _YOUNG_SECONDS:
        return False
    try:
        with open(os.path.join(entry.path, _LOCK_NAME), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
