"""Checkpoints that are whole or absent.

DeepSpeed writes its files straight into place. So they go under a temporary name, are flushed to disk, described with
their checksums in a manifest (the contract's own: it also tells the settings and inputs they belong to), and only then
is the directory renamed. A checkpoint without a manifest, or whose checksums differ, is never loaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines import storage
from pipelines.contract import StageKey, read_manifest, record_of, verify_file, write_manifest
from pipelines.recipe import InputError
from training.stages import code_version

if TYPE_CHECKING:
    from training.engine import Processes, TrainingEngine

CHECKPOINTS_DIRECTORY = "checkpoints"
_PREFIX = "step-"
_INCOMPLETE = "incomplete-"
LATEST_NAME = "latest"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: everything beside weights and optimizer that a resumed run needs.

    step: finished optimizer steps over all phases. phase, phase_step: the next step's place. position: next sample of
    the phase's global order. Dropout needs no saved state: its generator is keyed by (seed, step, rank, micro-batch).
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    position: int = 0
    tokens: int = 0
    sequences: int = 0
    seconds: float = 0.0
    world_size: int = 1
    statistics: dict[str, Any] = field(default_factory=dict)


def checkpoint_names(directory: str) -> list[str]:
    """Finished checkpoints below a directory, oldest first."""
    if not os.path.isdir(directory):
        return []
    return sorted(name for name in os.listdir(directory) if name.startswith(_PREFIX))


def require_same_run(checkpoint: str, key: StageKey, world_size: int) -> None:
    """Check that a checkpoint's directory belongs to this run.

    Raises:
        InputError: it was written with other settings, inputs or another number of ranks.
    """
    if difference := key.difference(checkpoint):
        raise InputError(
            f"{checkpoint}: belongs to another run ({difference}); finish it with its own settings, choose another "
            f"workspace, or delete {os.path.dirname(checkpoint)} to begin anew (training.pretrain --restart does)"
        )
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    written_by = manifest.statistics["world_size"]
    if written_by != world_size:
        raise InputError(
            f"{checkpoint}: written by {written_by} ranks, this run has {world_size}; start it with that many, "
            f"or delete {os.path.dirname(checkpoint)} to begin anew (training.pretrain --restart does)"
        )


def refuse_foreign_checkpoints(directory: str, key: StageKey, world_size: int) -> None:
    """Look at the newest undamaged checkpoint's manifest before anything is started; checksums come later.

    Raises:
        InputError: as `require_same_run`.
    """
    for name in reversed(checkpoint_names(directory)):
        checkpoint = os.path.join(directory, name)
        try:
            manifest = read_manifest(checkpoint)
        except InputError:
            continue  # damaged: resuming tells about it and takes the one before
        if manifest is not None:
            sizes = [storage.file_size_bytes(os.path.join(checkpoint, file.name)) for file in manifest.files]
            if sizes == [file.size_bytes for file in manifest.files]:
                require_same_run(checkpoint, key, world_size)
                return


class CheckpointStore:
    """The checkpoints of one run, below one directory; all ranks call its methods together."""

    def __init__(self, directory: str, key: StageKey, keep: int, processes: Processes, say: Callable[[str], None]):
        self._directory, self._key, self._keep = directory, key, keep
        self._processes, self._say = processes, say

    def names(self) -> list[str]:
        """Finished checkpoints, oldest first."""
        return checkpoint_names(self._directory)

    def newest(self) -> tuple[str, Progress] | None:
        """The newest checkpoint that is whole, and where it stands; rank 0 looks, all ranks learn.

        Raises:
            InputError: it belongs to other settings, inputs or another number of ranks.
        """
        found: tuple[str, Progress] | str | None = None
        if self._processes.is_first:
            try:
                found = self._newest()
            except InputError as error:
                found = str(error)
        found = self._processes.from_first(found)
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _newest(self) -> tuple[str, Progress] | None:
        for name in reversed(self.names()):
            directory = os.path.join(self._directory, name)
            try:
                manifest = read_manifest(directory)
                if manifest is None:
                    raise InputError(f"{directory}: has no manifest")
                for file in manifest.files:
                    verify_file(directory, file)
            except InputError as error:
                self._say(f"checkpoint {name} is damaged ({str(error).split(';')[0]}); trying the one before it")
                continue
            require_same_run(directory, self._key, self._processes.world_size)
            return name, Progress(**manifest.statistics)
        return None

    def load(self, engine: TrainingEngine, name: str) -> None:
        engine.load(self._directory, name)

    def save(self, engine: TrainingEngine, progress: Progress) -> None:
        """Write a checkpoint and drop those beyond the newest `keep`."""
        final = f"{_PREFIX}{progress.step:010d}"
        temporary = f"{_INCOMPLETE}{progress.step:010d}"
        if self._processes.is_first:
            self._remove_incomplete()
        self._processes.barrier()
        engine.save(self._directory, temporary)
        self._processes.barrier()
        if self._processes.is_first:
            self._finish(temporary, final, progress)
        self._processes.barrier()

    def _finish(self, temporary: str, final: str, progress: Progress) -> None:
        source, target = os.path.join(self._directory, temporary), os.path.join(self._directory, final)
        names = storage.list_files(source)
        for name in names:
            storage.flush_to_disk(os.path.join(source, name))
        records = [record_of(source, name, 0) for name in names]
        write_manifest(source, self._key.manifest(records, asdict(progress), code_version()))
        storage.flush_to_disk(source)
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.rename(source, target)
        storage.flush_to_disk(self._directory)
        storage.write_bytes(os.path.join(self._directory, LATEST_NAME), final.encode())
        for name in self.names()[: -self._keep]:
            shutil.rmtree(os.path.join(self._directory, name))

    def _remove_incomplete(self) -> None:
        if os.path.isdir(self._directory):
            for name in os.listdir(self._directory):
                if name.startswith(_INCOMPLETE):
                    shutil.rmtree(os.path.join(self._directory, name))
