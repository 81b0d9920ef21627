"""Checkpoints of a run whose workspace is in an object store: written locally, and stored while training continues.

A checkpoint counts once its manifest is stored. One that is due while the previous one is still being stored is owed
until that is done, so that no step waits for the store; only the end of the run does, and a stop within its grace
period. What could not be stored until then stays on the local disks, and the next run on the same machines stores it
before it looks for its newest checkpoint.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, StageKey, read_manifest, write_manifest
from pipelines.contract.workspace import CHECKPOINT_PREFIX, MANIFEST_NAME, code_version
from pipelines.stores.failures import StoreUnavailableError
from pipelines.stores.patience import patience_seconds
from training.resuming.checkpoint_upload import CheckpointUpload, LocalPart
from training.resuming.checkpoint_writer import CheckpointWriter
from training.resuming.checkpoints import CheckpointStore, Retention, Say
from training.resuming.progress import Progress

if TYPE_CHECKING:
    from training.engine.processes import Processes
    from training.engine.training_engine import TrainingEngine

_POLL_SECONDS = 0.5
_SECONDS_TO_LEAVE = 4.0
"""What a rank needs to end after its last wait."""


class RemoteCheckpoints(CheckpointStore):
    """The checkpoints of one run below a URI; no two ranks need to share a disk."""

    def __init__(
        self,
        uri: str,
        scratch: str,
        key: StageKey,
        retention: Retention,
        processes: Processes,
        writer: CheckpointWriter,
        say: Say,
        *,
        upload: Callable[[str, str, str], FileRecord],
        staged: Callable[[str, Manifest], str],
        before_manifest: Callable[[], None],
    ) -> None:
        """All ranks call it together.

        Args:
            uri: of the checkpoints.
            scratch: a local directory, which ranks may share.
            key, retention, processes, writer, say: as for `CheckpointStore`.
            upload: copies a file of a local directory to a URI and returns its record.
            staged: copies the files of a manifest to a local directory, verified, and returns it.
            before_manifest: stores what a resumed run needs besides the checkpoint.
        """
        super().__init__(uri, key, retention, processes, writer, say)
        self._scratch, self._upload, self._staged = scratch, upload, staged
        self._before_manifest = before_manifest
        self._own = os.path.join(scratch, f"rank{processes.rank:05d}")
        self._run_id: str = processes.from_first(uuid.uuid4().hex[:8])
        self._number = 0
        self._current: CheckpointUpload | None = None
        self._name = ""
        """Of the checkpoint that is or was last being stored."""
        self._stored = ""
        """The last one that is stored, known to rank 0."""
        self._kept: LocalPart | None = None
        """The last one, if it is on the local disk only and not being stored."""
        self._may_have_left = True

    def _how_to_resume(self) -> str:
        # Without a request: the store may be what has failed.
        place = f"checkpoint {self._stored}" if self._stored else "its newest checkpoint"
        return f"run the same command again to resume from {place}"

    def _verify(self, directory: str, manifest: Manifest) -> None:
        self._staged(directory, manifest)

    def newest(self, fits: Callable[[Progress], bool] = lambda _: True) -> tuple[str, Progress] | None:
        if self._may_have_left:
            self._may_have_left = False
            self._store_what_was_left()
        return super().newest(fits)

    def start_over(self) -> None:
        self._may_have_left = False

    def _store_what_was_left(self) -> None:
        """Store the checkpoint that an earlier run left on the disks of all ranks, if it is newer than those stored."""
        own = LocalPart.left_in(self._own, self._key)
        first: LocalPart | None = self._processes.from_first(own)
        count = self._processes.world_size
        is_same = own is not None and first is not None and own.attempt == first.attempt
        having = self._processes.count(is_same and own is not None and own.progress.world_size == count)
        is_newer = self._processes.is_first and first is not None and first.name > max(self.names(), default="")
        if first is None or not self._processes.from_first(is_newer):
            return
        if having < count:
            self._say(f"checkpoint {first.name} is not stored, and on the disks of {having} of {count} ranks: not used")
            return
        self._say(f"checkpoint {first.name} is on the local disk only; storing it")
        self._begin_upload(first.name, first.progress)
        self.wait()

    def _newest(self, fits: Callable[[Progress], bool]) -> tuple[str, Progress] | None:
        found = super()._newest(fits)
        self._stored = found[0] if found else ""
        return found

    def _local_copy(self, name: str) -> str:
        directory = storage.join(self._directory, name)
        manifest = read_manifest(directory)
        if manifest is None:
            raise InputError(f"{directory}: deleted meanwhile; run the same command again")
        return self._staged(directory, manifest)

    def _universal_folder(self) -> tuple[str, bool]:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        folder = os.path.join(self._scratch, f"universal-{self._processes.rank - local_rank:05d}")
        if not local_rank:
            shutil.rmtree(folder, ignore_errors=True)
        return folder, not local_rank

    def save(self, engine: TrainingEngine, progress: Progress, wait_seconds: float = 0.0) -> None:
        if not self._settled(wait_seconds):
            if not self.is_owed:
                self._say(
                    f"step {progress.step}: no checkpoint yet, as {self._name} is still being written to "
                    f"{self._directory} ({self._done_in_words()})"
                )
            self.is_owed = True
            if wait_seconds:
                self._keep(engine, progress)
            return
        self.is_owed = False
        shutil.rmtree(self._own, ignore_errors=True)
        name = _name_of(progress)
        engine.save(self._own, name, self._writer.take)
        self._begin_upload(name, progress)

    def _keep(self, engine: TrainingEngine, progress: Progress) -> None:
        """Write a run's last checkpoint to the local disk, while the one before is still being stored."""
        self._number += 1
        self._kept = part = LocalPart(_name_of(progress), f"{self._run_id}-{self._number}", progress)
        writer = CheckpointWriter(self._processes.rank, self._processes.world_size, in_background=False)
        engine.save(self._own, part.name, writer.take)
        writer.start_alone(lambda: part.note(self._own, self._key))
        writer.wait()

    def _begin_upload(self, name: str, progress: Progress) -> None:
        self._name = name
        self._may_have_left = False
        self._number += 1
        part = LocalPart(name, f"{self._run_id}-{self._number}", progress)
        upload = CheckpointUpload(
            os.path.join(self._own, name),
            storage.join(self._directory, name),
            self._processes.rank,
            self._processes.world_size,
            part.attempt,
            self._upload,
            self._say_on_every_rank,
        )
        self._current = upload
        self._writer.start_alone(lambda: self._store(upload, part))

    def wait(self) -> None:
        """Wait until the checkpoint being stored is complete.

        Raises:
            StoreUnavailableError: the store failed for too long.
            OSError: a rank could not write its local files.
        """
        self._wait()
        if self._kept is not None:
            self._begin_upload(self._kept.name, self._kept.progress)
            self._kept = None
            self._wait()

    def _wait(self) -> None:
        most_seconds = patience_seconds()
        if not self._settled(most_seconds):
            raise StoreUnavailableError(
                f"{storage.join(self._directory, self._name)}: not stored within {most_seconds:.0f} s "
                f"({self._done_in_words()}); when the store answers, {self._next_run()}"
            )

    def stop(self, progress: Progress, seconds_left: float) -> None:
        self._settled(max(0.0, seconds_left - _SECONDS_TO_LEAVE))
        stored: str = self._processes.from_first(self._stored)
        if stored == _name_of(progress):
            self._say(f"stopped by a signal after step {progress.step}; a checkpoint is written, run again to resume")
            return
        how = f"resume from checkpoint {stored}" if stored else "start over"
        line = (
            f"stopped by a signal after step {progress.step}; its checkpoint could not be written to "
            f"{self._directory} in time ({self._done_in_words()}); "
        )
        if self._is_left():
            self._say(f"{line}{self._next_run()}, elsewhere to {how}")
        else:
            self._say(f"{line}run again to {how}")

    def _is_left(self) -> bool:
        """Whether the checkpoint that is being stored is complete on the disks of all ranks."""
        own = LocalPart.left_in(self._own, self._key)
        return self._processes.count(own is not None) == self._processes.world_size

    def _next_run(self) -> str:
        where = "these machines" if self._processes.world_size > 1 else "this machine"
        name = self._kept.name if self._kept else self._name
        return f"run the same command again on {where} to resume from {name}, which is on the local disk"

    def _settled(self, seconds: float) -> bool:
        """Whether no rank stores a checkpoint, after waiting for that for at most so long; the same on all ranks."""
        deadline = time.monotonic() + seconds
        while True:
            busy = self._processes.count(self._writer.is_busy)
            late = self._processes.count(time.monotonic() >= deadline)
            if not busy:
                super().wait()
                return True
            if late:
                return False
            self._writer.join(_POLL_SECONDS)

    def _say_on_every_rank(self, line: str) -> None:
        who = f"rank {self._processes.rank}: " if self._processes.rank else ""
        print(f"{self._key.stage}: {who}checkpoint {self._name}: {line}", flush=True)

    def _done_in_words(self) -> str:
        upload = self._current
        if upload is None:
            return "nothing is written"
        done, total = storage.in_units(upload.done_bytes), storage.in_units(upload.total_bytes)
        return f"{done} of {total} by rank 0" if self._processes.world_size > 1 else f"{done} of {total}"

    def _store(self, upload: CheckpointUpload, part: LocalPart) -> None:
        """Runs in the writer's thread: no communication between ranks here."""
        part.note(self._own, self._key)
        upload.run(lambda records: self._finish_stored(part.name, records, part.progress))
        part.forget(self._own)

    def _finish_stored(self, name: str, records: list[FileRecord], progress: Progress) -> None:
        """Make a checkpoint count, and remove what is superfluous; runs on rank 0, in the writer's thread."""
        directory = storage.join(self._directory, name)
        self._before_manifest()
        write_manifest(directory, self._key.manifest(records, asdict(progress), code_version()))
        self._stored = name
        known = {MANIFEST_NAME, *(record.name for record in records)}
        for other in storage.list_files(directory):
            if other not in known:
                storage.remove_file(storage.join(directory, other))
        finished = self.names()
        for other in storage.list_directories(self._directory):
            if other not in finished:
                storage.remove_directory(storage.join(self._directory, other))
        # As for local checkpoints.
        if not progress.health.bad_steps_in_a_row:
            for other in self._retention.superfluous(finished):
                self._remove(other)

    def _remove(self, name: str) -> None:
        """Delete a checkpoint, its manifest first, so that a kill never leaves it incomplete."""
        directory = storage.join(self._directory, name)
        storage.remove_file(storage.join(directory, MANIFEST_NAME))
        storage.remove_directory(directory)


def _name_of(progress: Progress) -> str:
    return f"{CHECKPOINT_PREFIX}{progress.step:010d}"
