"""Locks and pins of the local cache, which the kernel releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator

from pipelines.contract import storage

PINS = "pins"


@contextlib.contextmanager
def held(path: str, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock for the duration of the block; yields whether it is held.

    Args:
        path: of the lock's file, which is created and stays.
        wait: for another holder to end; otherwise yield False at once.
    """
    storage.make_directory(os.path.dirname(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


class Pins:
    """Names in a cache that must not be deleted, in one locked file for each object; call it under the cache's lock."""

    def __init__(self, directory: str):
        self._directory = os.path.join(directory, PINS)
        self._names: Counter[str] = Counter()
        self._descriptor: int | None = None
        self._path = ""
        self._guard = threading.Lock()

    def add(self, name: str) -> None:
        with self._guard:
            self._names[name] += 1
            self._write()

    def remove(self, name: str) -> None:
        """Take back one `add`."""
        with self._guard:
            self._names[name] -= 1
            self._names += Counter()  # drops what is not positive
            self._write()

    def of_all(self) -> set[str]:
        """Names that any running process has pinned; files of ended processes are removed."""
        names: set[str] = set(self._names)
        for entry in os.listdir(self._directory) if os.path.isdir(self._directory) else []:
            path = os.path.join(self._directory, entry)
            if path == self._path:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.unlink(path)
            except BlockingIOError:
                with open(path, encoding="ascii") as stream:
                    names.update(stream.read().split())
            finally:
                os.close(descriptor)
        return names

    def close(self) -> None:
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)  # the next that looks removes the file
            self._descriptor, self._path = None, ""
            self._names.clear()

    def _write(self) -> None:
        if self._descriptor is None:
            storage.make_directory(self._directory)
            self._path = os.path.join(self._directory, uuid.uuid4().hex)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        data = "\n".join(self._names).encode("ascii")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
