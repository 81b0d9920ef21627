"""Atomic checkpoints: complete or absent.

DeepSpeed would write its files in place. So they are written under a temporary name, flushed to disk, described with
their checksums in a manifest (the contract's own: it also records the settings and inputs they belong to), and only
then is the directory renamed. A checkpoint without a manifest, or whose checksums differ, is never loaded.

It holds weights and optimizer (DeepSpeed's files, one part per rank) and `Progress`. No generator state is stored:
sample order, dropout and masks are keyed by the fields of Progress. The schedule is a function of its step.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines.contract import storage
from pipelines.contract.errors import InputError, failure_line
from pipelines.contract.manifest import Manifest, StageKey, read_manifest, record_of, verify_file, write_manifest
from pipelines.contract.workspace import CHECKPOINT_PREFIX, code_version
from training.resuming.progress import Progress
from training.stages.checkpoint_source import checkpoint_names

if TYPE_CHECKING:
    from training.engine.processes import Processes
    from training.engine.training_engine import TrainingEngine
    from training.resuming.checkpoint_writer import CheckpointWriter

Say = Callable[[str], None]

INCOMPLETE = "incomplete-"
"""Prefix of a checkpoint that is being written or removed."""
LATEST_NAME = "latest"


def require_same_run(checkpoint: str, key: StageKey) -> None:
    """Check that a checkpoint's directory belongs to this run; the number of ranks may differ.

    Raises:
        InputError: it was written with other settings or inputs.
    """
    if difference := key.difference(checkpoint):
        raise InputError(
            f"{checkpoint}: belongs to another run ({difference}); finish it with its own settings, choose another "
            "workspace, or set it aside with --restart (a flow: --rebuild)"
        )


def refuse_foreign_checkpoints(directory: str, key: StageKey) -> None:
    """Check the newest undamaged checkpoint's manifest before anything is started; checksums are verified later.

    Raises:
        InputError: as `require_same_run`.
    """
    for name in reversed(checkpoint_names(directory)):
        checkpoint = os.path.join(directory, name)
        try:
            manifest = read_manifest(checkpoint)
        except InputError:
            continue  # damaged: resuming reports it and takes the one before
        if manifest is not None:
            sizes = [storage.file_size_bytes(os.path.join(checkpoint, file.name)) for file in manifest.files]
            if sizes == [file.size_bytes for file in manifest.files]:
                require_same_run(checkpoint, key)
                return


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the newest `newest`, and those at multiples of `every_n_steps` steps (0: none).

    The last one until `branch_step`, where the rate starts to decay, is kept too: a longer run continues from there.
    """

    newest: int
    every_n_steps: int = 0
    branch_step: int | None = None

    def superfluous(self, names: list[str]) -> list[str]:
        """The names that may be deleted; `names` are in order of steps."""
        last = f"{CHECKPOINT_PREFIX}{self.branch_step or 0:010d}"
        branch = max((name for name in names if name <= last), default="")
        return [name for name in names[: -self.newest] if name != branch and not self._is_permanent(name)]

    def _is_permanent(self, name: str) -> bool:
        return bool(self.every_n_steps) and int(name.removeprefix(CHECKPOINT_PREFIX)) % self.every_n_steps == 0


class CheckpointStore:
    """The checkpoints of one run, below one local directory; all ranks call its methods together."""

    def __init__(
        self,
        directory: str,
        key: StageKey,
        retention: Retention,
        processes: Processes,
        writer: CheckpointWriter,
        say: Say,
    ) -> None:
        self._directory, self._key, self._retention = directory, key, retention
        self._processes, self._writer, self._say = processes, writer, say
        self.is_owed = False
        """Whether the last checkpoint that was due is not started yet; the same on all ranks."""
        processes.explain_deaths_by(self._how_to_resume)

    def _how_to_resume(self) -> str:
        names = checkpoint_names(self._directory)
        return f"run the same command again to {f'resume from checkpoint {names[-1]}' if names else 'start over'}"

    def names(self) -> list[str]:
        """Finished checkpoints, oldest first."""
        return checkpoint_names(self._directory)

    def start_over(self) -> None:
        """Do not resume from what an earlier run has left on this disk alone."""

    def newest(self, fits: Callable[[Progress], bool] = lambda _: True) -> tuple[str, Progress] | None:
        """The newest complete checkpoint whose progress `fits`, with its progress; the same on all ranks.

        Raises:
            InputError: it belongs to other settings or inputs.
        """
        found: tuple[str, Progress] | str | None = None
        if self._processes.is_first:
            try:
                found = self._newest(fits)
            except InputError as error:
                found = str(error)
        found = self._processes.from_first(found)
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _newest(self, fits: Callable[[Progress], bool]) -> tuple[str, Progress] | None:
        for name in reversed(self.names()):
            directory = storage.join(self._directory, name)
            try:
                manifest = read_manifest(directory)
                if manifest is None:
                    raise InputError(f"{directory}: has no manifest")
                self._verify(directory, manifest)
            except InputError as error:
                self._say(f"checkpoint {name} is damaged ({str(error).split(';')[0]}); trying the one before it")
                continue
            require_same_run(directory, self._key)
            progress = Progress.from_json(manifest.statistics)
            if fits(progress):
                return name, progress
        return None

    def _verify(self, directory: str, manifest: Manifest) -> None:
        """Compare the files of a checkpoint with its manifest; runs on rank 0.

        Raises:
            InputError: one is missing or damaged.
        """
        for file in manifest.files:
            verify_file(directory, file)

    def _local_copy(self, name: str) -> str:
        """A local directory with the files of a checkpoint."""
        return os.path.join(self._directory, name)

    def _universal_folder(self) -> tuple[str, bool]:
        """Where a checkpoint is converted, and whether this rank is the one that does it there."""
        if self._processes.is_first:
            self._remove_incomplete()
        return os.path.join(self._directory, f"{INCOMPLETE}universal"), self._processes.is_first

    def load(self, engine: TrainingEngine, name: str, world_size: int) -> None:
        """Restore weights and optimizer from a checkpoint that `world_size` ranks have written."""
        source = self._local_copy(name)
        is_sharded = bool(glob.glob(os.path.join(glob.escape(source), "*_optim_states.pt")))
        if world_size == self._processes.world_size or not is_sharded:
            engine.load(*os.path.split(source))
            return
        self._say(
            f"checkpoint {name} was written by {world_size} ranks, this run has {self._processes.world_size}: "
            "converting it to DeepSpeed's universal form"
        )
        folder, is_own = self._universal_folder()
        if is_own:
            engine.convert_to_universal(source, os.path.join(folder, name))
        self._processes.barrier()
        engine.load(folder, name, is_universal=True)
        self._processes.barrier()
        if is_own:
            shutil.rmtree(folder)

    def save(self, engine: TrainingEngine, progress: Progress, _wait_seconds: float = 0.0) -> None:
        """Start writing a checkpoint, and drop superfluous ones once it is complete.

        Args:
            engine: with the weights.
            progress: of the run.
            _wait_seconds: how long a remote store may wait for the previous one; this one is then owed.

        Raises:
            InputError: the previous one could not be written.
        """
        self.wait()
        final = f"{CHECKPOINT_PREFIX}{progress.step:010d}"
        temporary = f"{INCOMPLETE}{progress.step:010d}"
        if self._processes.is_first:
            self._remove_incomplete()
        self._processes.barrier()
        engine.save(self._directory, temporary, self._writer.take)
        self._writer.start(os.path.join(self._directory, temporary), lambda: self._finish(temporary, final, progress))

    def wait(self) -> None:
        """Wait until the checkpoint being written is complete.

        Raises:
            InputError: it could not be written.
        """
        problem = ""
        try:
            self._writer.wait()
        except (OSError, InputError) as error:
            problem = f"a checkpoint could not be written: {failure_line(error)}"
        failures = self._processes.count(bool(problem))
        if failures:
            raise InputError(problem or f"{self._directory}: another rank could not write its part of a checkpoint")

    def stop(self, progress: Progress, _seconds_left: float) -> None:
        """Wait for the last checkpoint of a run that was asked to stop, and print how it continues.

        Args:
            progress: of the run.
            _seconds_left: until the process is killed.

        Raises:
            InputError: the checkpoint could not be written.
        """
        self._say(f"stopped by a signal after step {progress.step}; a checkpoint is written, run again to resume")
        self.wait()

    def drop_after(self, name: str) -> None:
        """Delete the checkpoints after the one that the run returns to, newest first: a kill leaves a valid state."""
        if self._processes.is_first:
            for later in reversed([other for other in self.names() if other > name]):
                self._remove(later)
        self._processes.barrier()

    def _finish(self, temporary: str, final: str, progress: Progress) -> None:
        """Runs on rank 0, perhaps in the writer's thread: no communication between ranks here."""
        source, target = os.path.join(self._directory, temporary), os.path.join(self._directory, final)
        names = storage.list_files(source)
        for name in names:
            storage.flush_to_disk(os.path.join(source, name))
        records = [record_of(source, name, 0) for name in names]
        write_manifest(source, self._key.manifest(records, asdict(progress), code_version()))
        storage.flush_to_disk(source)
        if os.path.isdir(target):
            self._remove(final)
        os.rename(source, target)
        storage.flush_to_disk(self._directory)
        storage.write_bytes(os.path.join(self._directory, LATEST_NAME), final.encode())
        # While steps are bad the last good checkpoint must be kept, however many newer ones exist.
        if not progress.health.bad_steps_in_a_row:
            for name in self._retention.superfluous(self.names()):
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Delete a finished checkpoint; renamed first, so that a kill never leaves it incomplete."""
        doomed = os.path.join(self._directory, f"{INCOMPLETE}{name}")
        os.rename(os.path.join(self._directory, name), doomed)
        shutil.rmtree(doomed)

    def _remove_incomplete(self) -> None:
        if os.path.isdir(self._directory):
            for name in os.listdir(self._directory):
                if name.startswith(INCOMPLETE):
                    shutil.rmtree(os.path.join(self._directory, name))
                elif name.startswith(f"{LATEST_NAME}."):  # its temporary file, left by a kill
                    os.remove(os.path.join(self._directory, name))
