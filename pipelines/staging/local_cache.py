"""Keep files of object stores on the local disk: by checksum, bounded, shared by the processes of a machine.

    files/ab/abcd...   a complete, verified file, named by its SHA-256; read-only
    partial/abcd...    one that is being copied; it has its final size from the start, so that others count it
    views/12cd...      a directory of hard links into files/, for libraries that want a directory
    locks/, pins/      see `cache_locks`

A file is copied once, whichever run, rank or stage asks first; the others wait for it. What was not used for the
longest time is deleted when space is needed, but nothing that a running process has pinned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence

from pipelines.contract import storage
from pipelines.contract.errors import InputError, writing
from pipelines.contract.manifest import FileRecord, digest_of
from pipelines.contract.recipe import RunConfig
from pipelines.staging.cache_locks import Pins, held
from pipelines.staging.default_place import default_directory
from pipelines.staging.transfers import download

FILES, PARTIAL, VIEWS, LOCKS, BUILDS = "files", "partial", "views", "locks", "builds"
_CACHE_LOCK = "cache"
_RESERVED_BYTES = 1 << 30
"""Never used of a disk's free space."""


def local_directory(run: RunConfig) -> str:
    """Where a run stages and builds: `run.local_directory`, or the user's cache directory."""
    if run.local_directory is not None:
        return os.path.abspath(run.local_directory)
    return default_directory()


class LocalCache:
    """Content-addressed cache below one directory. Safe for several threads and processes."""

    def __init__(self, directory: str, max_bytes: int):
        """
        Args:
            directory: on a local disk; it is created when a file is fetched.
            max_bytes: bound of all files together; less where the disk has less free.
        """
        self.directory = directory
        self._max_bytes = max_bytes
        self._pins = Pins(directory)

    @classmethod
    def of(cls, run: RunConfig) -> LocalCache:
        return cls(local_directory(run), run.local_directory_bytes)

    def fetch(self, uri: str, record: FileRecord) -> str:
        """Copy a file, unless it is here, and pin it for this cache object.

        Args:
            uri: of the file.
            record: its size and checksum, which are verified while it is copied.

        Returns:
            The local path. The file stays there until `release`, or until this process ends.

        Raises:
            InputError: the file is missing or damaged in the store, or the cache has no space for it.
            OSError: the store does not answer, or the disk fails.
        """
        path = self._path(FILES, record.sha256[:2], record.sha256)
        with held(self._path(LOCKS, record.sha256)):
            with held(self._path(LOCKS, _CACHE_LOCK)):
                self._pins.add(record.sha256)
                if _size_of(path) == record.size_bytes:
                    os.utime(path)
                    return path
                partial = self._reserve(record)
            try:
                with writing(partial):
                    download(uri, record, partial)
                    os.chmod(partial, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
                    storage.make_directory(os.path.dirname(path))
                    os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)
                self.release(record)
                raise
        return path

    def release(self, record: FileRecord) -> None:
        """Let a file be deleted when space is needed; an open memory map of it stays valid."""
        with held(self._path(LOCKS, _CACHE_LOCK)):
            self._pins.remove(record.sha256)

    def view(self, uri: str, records: Sequence[FileRecord]) -> str:
        """A local directory that holds exactly these files of a directory `uri`, under their names; it is pinned."""
        digest = digest_of([[record.name, record.sha256] for record in sorted(records, key=lambda one: one.name)])
        path = self._path(VIEWS, digest)
        with held(self._path(LOCKS, digest)):
            with held(self._path(LOCKS, _CACHE_LOCK)):
                self._pins.add(digest)
                if os.path.isdir(path):
                    os.utime(path)
                    return path
            building = path + storage.TEMPORARY_SUFFIX
            shutil.rmtree(building, ignore_errors=True)
            for record in records:
                source = self.fetch(storage.join(uri, record.name), record)
                target = os.path.join(building, record.name)
                storage.make_directory(os.path.dirname(target))
                os.link(source, target)
            storage.make_directory(building)
            os.rename(building, path)
        for record in records:
            self.release(record)  # the view's links keep it
        return path

    def close(self) -> None:
        """Release everything."""
        self._pins.close()

    def _path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def _reserve(self, record: FileRecord) -> str:
        """Make room for a file and create it with its final size; called under the cache's lock."""
        partial = self._path(PARTIAL, record.sha256)
        storage.make_directory(os.path.dirname(partial))
        self._make_room(record)
        with open(partial, "wb") as stream:
            os.truncate(stream.fileno(), record.size_bytes)
        return partial

    def _make_room(self, record: FileRecord) -> None:
        self._remove_abandoned()
        files = [entry for folder in _entries(self._path(FILES)) for entry in _entries(folder.path)]
        sizes = {entry.path: entry.stat().st_size for entry in files}
        used_bytes = sum(sizes.values()) + sum(entry.stat().st_size for entry in _entries(self._path(PARTIAL)))
        free_bytes = shutil.disk_usage(self.directory).free - _RESERVED_BYTES
        pinned = self._pins.of_all()
        for candidate in self._least_recently_used(files, pinned):
            if used_bytes + record.size_bytes <= self._max_bytes and record.size_bytes <= free_bytes:
                break
            if candidate.is_dir():
                shutil.rmtree(candidate.path)
            elif os.stat(candidate.path).st_nlink == 1:
                os.unlink(candidate.path)
                used_bytes -= sizes[candidate.path]
                free_bytes += sizes[candidate.path]
        if used_bytes + record.size_bytes > self._max_bytes:
            raise InputError(
                f"run.local_directory_bytes = {self._max_bytes}: running stages use {storage.in_units(used_bytes)} in "
                f"{self.directory}, and {record.name} needs {storage.in_units(record.size_bytes)}; raise it, or wait "
                "for the other stages to end"
            )
        if record.size_bytes > free_bytes:
            raise InputError(
                f"{self.directory}: {record.name} needs {storage.in_units(record.size_bytes)}, and "
                f"{storage.in_units(max(0, free_bytes))} are free (1 GB is kept free); free space there or choose "
                "another run.local_directory"
            )

    def _least_recently_used(self, files: Sequence[os.DirEntry[str]], pinned: set[str]) -> list[os.DirEntry[str]]:
        """What may be deleted, oldest first; views come before the files that they link to."""
        views = [entry for entry in _entries(self._path(VIEWS)) if entry.name not in pinned]
        candidates = [(entry.stat().st_mtime_ns, entry) for entry in files if entry.name not in pinned]
        views_first = sorted(((entry.stat().st_mtime_ns, entry) for entry in views), key=lambda each: each[0])
        return [entry for _, entry in (*views_first, *sorted(candidates, key=lambda each: each[0]))]

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were copying: its lock is free."""
        for entry in _entries(self._path(PARTIAL)):
            with held(self._path(LOCKS, entry.name), wait=False) as is_held:
                if is_held:
                    os.unlink(entry.path)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
