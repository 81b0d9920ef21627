"""Where a run writes: its stage's build directory or, if that is remote, a local directory from which it is stored."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.contract import storage
from pipelines.contract.errors import InputError, failure_line
from pipelines.contract.manifest import FileRecord, Manifest, StageKey, record_of
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import CHECKPOINTS_DIRECTORY, METRICS_NAME
from pipelines.results.marks import building_directory
from pipelines.staging.local_build import LocalBuild
from pipelines.staging.staged import StagedDirectory, staged
from pipelines.staging.transfers import upload
from training.resuming.checkpoints import CheckpointStore, Retention, Say
from training.resuming.remote_checkpoints import RemoteCheckpoints

if TYPE_CHECKING:
    from training.engine.processes import Processes
    from training.resuming.checkpoint_writer import CheckpointWriter

_METRICS_SECONDS = 20.0
"""Between two copies of a growing metrics.jsonl to the store."""
_LAST_METRICS_SECONDS = 2.0
"""For the last copy, when a run ends early."""


class RunDirectory:
    """The files of one run on one node.

    uri: of the build directory. path: of the local directory that is written; the build directory itself, if it is
    local.
    """

    def __init__(self, directory: str, run: RunConfig) -> None:
        """`directory`: of the stage's result."""
        self.uri, self._run = building_directory(directory), run
        self.is_remote = not storage.is_local(directory)
        self.path = LocalBuild(self.uri, run).directory if self.is_remote else self.uri
        self._copy: StagedDirectory | None = None
        self._published_bytes = -1
        self._publishing = threading.Lock()

    def checkpoints(
        self, key: StageKey, retention: Retention, processes: Processes, writer: CheckpointWriter, say: Say
    ) -> CheckpointStore:
        """The run's checkpoints."""
        uri = storage.join(self.uri, CHECKPOINTS_DIRECTORY)
        if not self.is_remote:
            return CheckpointStore(uri, key, retention, processes, writer, say)
        scratch = storage.join(self.path, CHECKPOINTS_DIRECTORY)
        return RemoteCheckpoints(
            uri,
            scratch,
            key,
            retention,
            processes,
            writer,
            say,
            upload=self._upload,
            staged=self._staged,
            before_manifest=self._publish_metrics,
        )

    def publish(self, names: Sequence[str]) -> list[FileRecord]:
        """Store finished files, given by their names below the directory, and describe them."""
        if not self.is_remote:
            return [record_of(self.path, name, 0) for name in names]
        self._publish_metrics()
        return [self._upload(self.path, name, storage.join(self.uri, name)) for name in names]

    @contextmanager
    def followed_metrics(self, is_first: bool) -> Iterator[None]:
        """Fetch the metrics of the run so far, and store them while they grow; on rank 0, of a remote directory."""
        if not (self.is_remote and is_first):
            yield
            return
        stored, path = storage.join(self.uri, METRICS_NAME), storage.join(self.path, METRICS_NAME)
        storage.remove_file(path)
        if storage.file_size_bytes(stored) is not None:
            storage.write_bytes(path, storage.read_bytes(stored))
        ended = threading.Event()
        follower = threading.Thread(target=self._follow_metrics, args=(ended,), name="metrics", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join(_LAST_METRICS_SECONDS)

    def discard(self) -> None:
        """Remove the local files, once all are stored."""
        if self.is_remote:
            shutil.rmtree(self.path, ignore_errors=True)

    def _follow_metrics(self, ended: threading.Event) -> None:
        is_failing = False
        while True:
            is_last = ended.wait(_METRICS_SECONDS)
            try:
                self._publish_metrics()
                is_failing = False
            except (OSError, InputError) as error:
                if not is_failing:
                    print(f"metrics could not be stored ({failure_line(error)}); retrying", file=sys.stderr, flush=True)
                is_failing = True
            if is_last:
                return

    def _publish_metrics(self) -> None:
        """Store the complete lines of metrics.jsonl, if there are new ones."""
        path = storage.join(self.path, METRICS_NAME)
        with self._publishing:
            data = storage.read_bytes(path) if os.path.exists(path) else b""
            data = data[: data.rfind(b"\n") + 1]
            if data and len(data) != self._published_bytes:
                storage.write_bytes(storage.join(self.uri, METRICS_NAME), data)
                self._published_bytes = len(data)

    def _upload(self, directory: str, name: str, uri: str) -> FileRecord:
        upload(os.path.join(directory, name), uri)
        return record_of(directory, name, 0)

    def _staged(self, uri: str, manifest: Manifest) -> str:
        if self._copy is not None:
            self._copy.close()
        self._copy = staged(uri, manifest, self._run)
        return self._copy.all()
