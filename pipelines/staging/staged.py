"""Inputs of a stage as local files: those of a local workspace where they are, others from the local cache."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Sequence

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest
from pipelines.contract.recipe import RunConfig
from pipelines.staging.local_cache import LocalCache

_PREFETCH_THREADS = 2
"""One copies while the other flushes its file to the disk."""


class StagedDirectory:
    """A directory's files on the local disk. Several threads may use it."""

    def __init__(self, uri: str, records: Sequence[FileRecord], cache: LocalCache | None):
        """
        Args:
            uri: of the directory.
            records: its files, or those that are needed.
            cache: where files of a store are kept; None for a local directory, whose files are used where they are.
        """
        self.uri = uri
        self._records = {record.name: record for record in records}
        self._cache = cache
        self._waiting: collections.deque[str] = collections.deque()
        self._prefetching: list[threading.Thread] = []

    def path(self, name: str) -> str:
        """Local path of a file; of a store, once it is copied and verified.

        Raises:
            InputError: it is missing or damaged in the store, or the cache is full.
            OSError: the store did not answer for long.
        """
        if self._cache is None:
            return storage.join(storage.local_path(self.uri), name)
        return self._cache.fetch(storage.join(self.uri, name), self._records[name])

    def prefetch(self, names: Iterable[str]) -> None:
        """Copy files in the background, in this order; does not wait, and what fails, `path` raises.

        An earlier order is given up, except for the files that are being copied.
        """
        if self._cache is None:
            return
        self._waiting.clear()
        # A thread that fetches a file of the earlier order keeps its own, empty list.
        self._waiting = collections.deque(names)
        self._prefetching = [thread for thread in self._prefetching if thread.is_alive()]
        for _ in range(_PREFETCH_THREADS):
            arguments = (self._cache, self._waiting)
            thread = threading.Thread(target=self._fetch_all, args=arguments, name="prefetch", daemon=True)
            self._prefetching.append(thread)
            thread.start()

    def release(self, name: str) -> None:
        """Let the cache delete a file when it needs space; open memory maps of it stay valid."""
        if self._cache is not None:
            self._cache.release(self._records[name])

    def all(self) -> str:
        """A local directory with every file, for libraries that want a directory; it must not be written to."""
        if self._cache is None:
            return storage.local_path(self.uri)
        return self._cache.view(self.uri, list(self._records.values()))

    def close(self) -> None:
        """Stop prefetching and release all files; paths that were given out must not be opened any more."""
        self._waiting.clear()
        for thread in self._prefetching:
            thread.join()
        self._prefetching.clear()
        if self._cache is not None:
            self._cache.close()

    def _fetch_all(self, cache: LocalCache, waiting: collections.deque[str]) -> None:
        while True:
            try:
                record = self._records[name := waiting.popleft()]
            except IndexError:
                return  # nothing is left, or the order was given up
            try:
                cache.fetch(storage.join(self.uri, name), record)
            except (InputError, OSError):
                return  # `path` meets it again, and raises it
            cache.release(record)


def staged(uri: str, manifest: Manifest, run: RunConfig, names: Iterable[str] | None = None) -> StagedDirectory:
    """The files of a stage's result as local files.

    Args:
        uri: of the result.
        manifest: of the result.
        run: names the local directory.
        names: files that are needed; None for all.
    """
    needed = None if names is None else set(names)
    records = [record for record in manifest.files if needed is None or record.name in needed]
    return StagedDirectory(uri, records, None if storage.is_local(uri) else LocalCache.of(run))
