"""Stores one rank's files of a checkpoint in a remote workspace; the manifest that rank 0 writes last makes them count.

Ranks need no shared disk: each uploads its own files and then a record of them, and rank 0 waits for all records. A
record has the number of its attempt in its name, so that those of a killed run are not taken for this run's. What the
store refuses is tried again until it is stored: the local files stay as long.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from pipelines.contract import storage
from pipelines.contract.errors import InputError, failure_line
from pipelines.contract.manifest import FileRecord, StageKey, read_manifest, write_manifest
from pipelines.contract.workspace import MANIFEST_NAME, code_version
from training.resuming.progress import Progress

_POLL_SECONDS = 0.25
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0


@dataclass
class CheckpointUpload:
    """The upload of one checkpoint by one rank.

    source: local directory with this rank's files. target: URI of the checkpoint. attempt: distinguishes it from other
    uploads of the same step. upload: copies a file of a local directory to a URI and returns its record. say: prints a
    line on every rank. done_bytes, total_bytes: of this rank.
    """

    source: str
    target: str
    rank: int
    world_size: int
    attempt: str
    upload: Callable[[str, str, str], FileRecord]
    say: Callable[[str], None]
    done_bytes: int = 0
    total_bytes: int = 0
    _records: dict[str, FileRecord] = field(default_factory=dict)
    _others: dict[int, list[FileRecord]] = field(default_factory=dict)
    """Read once: `finish` removes their records from the store."""

    def run(self, finish: Callable[[list[FileRecord]], None]) -> None:
        """Store this rank's files, and on rank 0 call `finish` with the records of all ranks; then remove the files.

        `finish` may be called again, if the store failed in it.
        """
        started, pause_seconds, is_failing = time.monotonic(), _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                self._store(finish)
                break
            except (OSError, InputError) as error:
                if not is_failing:
                    self.say(f"not stored yet ({failure_line(error)}); trying again while training continues")
                is_failing = True
                time.sleep(pause_seconds)
                pause_seconds = min(2.0 * pause_seconds, _LONGEST_PAUSE_SECONDS)
        if is_failing:
            self.say(f"stored, {time.monotonic() - started:.0f} s after its step")
        shutil.rmtree(self.source)

    def _store(self, finish: Callable[[list[FileRecord]], None]) -> None:
        sizes = _sizes_below(self.source)
        self.total_bytes = sum(sizes.values())
        for name in sizes:
            if name not in self._records:
                self._records[name] = self.upload(self.source, name, storage.join(self.target, name))
                self.done_bytes += sizes[name]
        records = list(self._records.values())
        if self.rank:
            text = json.dumps([record.model_dump() for record in records])
            storage.write_bytes(self._uri_of_records(self.rank), text.encode())
            return
        for other in range(1, self.world_size):
            if other not in self._others:
                self._others[other] = self._records_of(other)
            records += self._others[other]
        finish(records)

    def _records_of(self, rank: int) -> list[FileRecord]:
        uri = self._uri_of_records(rank)
        while storage.file_size_bytes(uri) is None:
            time.sleep(_POLL_SECONDS)
        return [FileRecord.model_validate(record) for record in json.loads(storage.read_bytes(uri))]

    def _uri_of_records(self, rank: int) -> str:
        return storage.join(self.target, f"rank{rank:05d}.{self.attempt}.part.json")


@dataclass(frozen=True)
class LocalPart:
    """One rank's files of a checkpoint that are complete on the local disk and perhaps not stored yet.

    attempt: equal on all ranks that wrote it together.
    """

    name: str
    attempt: str
    progress: Progress

    def note(self, directory: str, key: StageKey) -> None:
        """Write down in `directory`, which holds the files below `name`, that they are complete."""
        statistics = {
            "checkpoint": self.name,
            "attempt": self.attempt,
            "bytes": _sizes_below(os.path.join(directory, self.name)),
            "progress": asdict(self.progress),
        }
        write_manifest(directory, key.manifest([], statistics, code_version()))

    def forget(self, directory: str) -> None:
        """Take the note back, as the files are stored; that of a later checkpoint stays."""
        manifest = read_manifest(directory)
        if manifest is not None and manifest.statistics["attempt"] == self.attempt:
            storage.remove_file(os.path.join(directory, MANIFEST_NAME))

    @classmethod
    def left_in(cls, directory: str, key: StageKey) -> LocalPart | None:
        """What an earlier run with this key noted and could not store; None if there is nothing, or files are gone."""
        try:
            manifest = read_manifest(directory)
            if manifest is None or key.difference(directory) is not None:
                return None
        except InputError:
            return None  # of another release: the store's own checkpoints are used
        found = manifest.statistics
        if _sizes_below(os.path.join(directory, found["checkpoint"])) != found["bytes"]:
            return None
        return cls(found["checkpoint"], found["attempt"], Progress.from_json(found["progress"]))


def _sizes_below(directory: str) -> dict[str, int]:
    return {name: os.path.getsize(os.path.join(directory, name)) for name in storage.list_files(directory)}
