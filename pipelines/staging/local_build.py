"""A directory that is written locally and published to a workspace: the same directory where that one is local."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterable

from pipelines.contract import storage
from pipelines.contract.recipe import RunConfig
from pipelines.staging.local_cache import BUILDS, local_directory
from pipelines.staging.transfers import upload


class LocalBuild:
    """Files below `directory` on the local disk, and their publication below `uri`.

    For a local `uri`, `directory` is its path, and publishing does nothing: the files are in place.
    """

    def __init__(self, uri: str, run: RunConfig):
        self.uri = uri
        self.is_local = storage.is_local(uri)
        self.directory = storage.local_path(uri) if self.is_local else _place_of(uri, run)
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._publisher: threading.Thread | None = None
        self._followers: list[tuple[threading.Thread, threading.Event]] = []
        self._failure: BaseException | None = None

    def publish(self, names: Iterable[str]) -> None:
        """Upload files, in this order; they are in the store when it returns.

        Raises:
            OSError: the store did not accept a file for long.
        """
        if not self.is_local:
            for name in names:
                upload(os.path.join(self.directory, name), storage.join(self.uri, name))

    def publish_soon(self, name: str) -> None:
        """Upload a file in the background; `close` waits for it and raises what failed."""
        if self.is_local:
            return
        if self._publisher is None:
            self._publisher = threading.Thread(target=self._publish_queued, name="publish", daemon=True)
            self._publisher.start()
        self._queue.put(name)

    def follow(self, name: str, every_seconds: float) -> None:
        """Upload a growing file, such as `metrics.jsonl`, whenever it has changed, at most once in that time."""
        if not self.is_local:
            ended = threading.Event()
            thread = threading.Thread(
                target=self._follow, args=(name, every_seconds, ended), name=f"follow {name}", daemon=True
            )
            self._followers.append((thread, ended))
            thread.start()

    def close(self) -> None:
        """Wait for all uploads; files that are followed are uploaded a last time.

        Raises:
            OSError: the store did not accept a file for long.
        """
        for _, ended in self._followers:
            ended.set()
        for thread, _ in self._followers:
            thread.join()
        self._followers.clear()
        if self._publisher is not None:
            self._queue.put(None)
            self._publisher.join()
            self._publisher = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def discard(self) -> None:
        """Delete the local copy of what is published; files of a local workspace stay."""
        if not self.is_local:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _publish_queued(self) -> None:
        while (name := self._queue.get()) is not None:
            try:
                self.publish([name])
            except OSError as error:
                self._failure = self._failure or error
                print(f"{storage.join(self.uri, name)}: not written ({error})", file=sys.stderr, flush=True)

    def _follow(self, name: str, every_seconds: float, ended: threading.Event) -> None:
        path, published = os.path.join(self.directory, name), (-1, -1)
        while True:
            is_last = ended.wait(every_seconds)
            try:
                information = os.stat(path)
                if (content := (information.st_size, information.st_mtime_ns)) != published:
                    self.publish([name])
                    published = content
            except FileNotFoundError:
                pass  # not written yet
            except OSError as error:
                if is_last:
                    self._failure = self._failure or error
            if is_last:
                return


def _place_of(uri: str, run: RunConfig) -> str:
    """Local directory of a build, the same for every process of this machine."""
    name = uri.rstrip("/").rpartition("/")[2]
    digest = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    path = os.path.join(local_directory(run), BUILDS, f"{name}-{digest}")
    storage.make_directory(path)
    return path
