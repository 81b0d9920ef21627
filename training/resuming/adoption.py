"""Adopts a checkpoint of a finished run as the first one of another run, without changing a file of the finished run.

The files are hard links where the disk has them: no process writes into a finished checkpoint, and removal of one name
leaves the other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, verify_file, write_manifest
from pipelines.contract.workspace import CHECKPOINTS_DIRECTORY, METRICS_NAME
from training.optimizers.schedule import Schedule
from training.resuming.checkpoints import INCOMPLETE, LATEST_NAME
from training.resuming.progress import Progress
from training.settings.optimization import PRECISION
from training.settings.pretraining import PretrainingConfig
from training.stages.continuing import Continuation

_PLACES = 6
"""Significant digits of a learning rate in a message."""


def verify(continuation: Continuation) -> None:
    """Compare the checkpoint's files with its manifest; call it before anything is written.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not storage.is_local(continuation.checkpoint):
        return  # verified while its copy is staged
    for file in continuation.manifest.files:
        try:
            verify_file(continuation.checkpoint, file)
        except InputError as error:
            raise InputError(
                f"{continuation.checkpoint}: cannot be continued from: {str(error).split(';')[0]}; move this "
                "checkpoint away, and the one before it is taken"
            ) from error


def adopt(continuation: Continuation, key: StageKey, building: str) -> None:
    """Make the checkpoint the first one of a build; complete or without effect, so a kill leaves nothing to repair.

    Args:
        continuation: which checkpoint, and where the build continues.
        key: of the build.
        building: the build's directory, which has its mark.
    """
    metrics = storage.join(continuation.source, METRICS_NAME)
    if storage.file_size_bytes(metrics) is not None:
        # The tracker drops the lines after the checkpoint's step.
        storage.write_bytes(storage.join(building, METRICS_NAME), storage.read_bytes(metrics))
    if not storage.is_local(building):
        _adopt_remote(continuation, key, building)
        return
    folder = storage.local_path(storage.join(building, CHECKPOINTS_DIRECTORY))
    temporary = os.path.join(folder, f"{INCOMPLETE}{continuation.name}")
    if os.path.isdir(temporary):
        shutil.rmtree(temporary)
    for file in continuation.manifest.files:
        target = os.path.join(temporary, file.name)
        storage.make_directory(os.path.dirname(target))
        _link(os.path.join(storage.local_path(continuation.checkpoint), file.name), target)
    write_manifest(temporary, _manifest(continuation, key))
    storage.flush_to_disk(temporary)
    os.rename(temporary, os.path.join(folder, continuation.name))
    storage.flush_to_disk(folder)
    storage.write_bytes(os.path.join(folder, LATEST_NAME), continuation.name.encode())


def _adopt_remote(continuation: Continuation, key: StageKey, building: str) -> None:
    """Copy the files within the store; the manifest, which makes them a checkpoint, is last."""
    target = storage.join(building, CHECKPOINTS_DIRECTORY, continuation.name)
    for file in continuation.manifest.files:
        storage.copy_file(storage.join(continuation.checkpoint, file.name), storage.join(target, file.name))
    write_manifest(target, _manifest(continuation, key))


def _manifest(continuation: Continuation, key: StageKey) -> Manifest:
    progress = asdict(continued_progress(continuation))
    return key.manifest(continuation.manifest.files, progress, continuation.manifest.code_version)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # The disk has no hard links, or the source is on another one.
        shutil.copyfile(source, target)
        storage.flush_to_disk(target)


def continued_progress(continuation: Continuation) -> Progress:
    """The checkpoint's progress as that of the continued run."""
    progress, place = Progress.from_json(continuation.manifest.statistics), continuation.place
    kept = progress.statistics if continuation.is_same_heldout else {}
    if PRECISION in progress.statistics:
        # Of the checkpoint's files, whatever is held out.
        kept = {**kept, PRECISION: progress.statistics[PRECISION]}
    lineage = [*progress.statistics.get("lineage", ()), continuation.lineage.to_json()]
    return replace(
        progress,
        phase=place.phase,
        phase_step=place.phase_step,
        position=place.position,
        statistics={**kept, "lineage": lineage},
        health=progress.health.for_next_phase() if place.is_other_order else progress.health,
    )


def in_words(continuation: Continuation, new: PretrainingConfig) -> Iterator[str]:
    """Lines that show what differs, and where and at which rate the run continues."""
    place, source = continuation.place, continuation.source
    yield f"continues from checkpoint {continuation.name} of the finished run in {source}, which is not changed"
    for difference in continuation.differences:
        yield f"differs from it: {difference}"
    length = new.phases[place.phase].max_seq_length
    where = f"sample {place.position:,} of phase {place.phase} (length {length})"
    if place.is_other_order:
        yield f"continues with {where}: rows or their order differ, so the data starts from its beginning"
    else:
        yield f"continues with {where}"
    before, after = (Schedule.of(config).rate_at(place.step) for config in (continuation.old, new))
    if before == after:
        yield f"the learning rate continues at {after:.{_PLACES}g}"
    else:
        yield f"the learning rate after step {place.step:,} jumps from {before:.{_PLACES}g} to {after:.{_PLACES}g}"
