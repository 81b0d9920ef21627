"""Checkpoints of a pre-training as sources of weights: `WORKSPACE@step-1000`, `WORKSPACE@latest`.

Must not import torch: keys of stages are derived from a checkpoint's manifest, without reading its weights.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, digest_of, read_manifest
from pipelines.contract.workspace import (
    CHECKPOINT_PREFIX,
    CHECKPOINTS_DIRECTORY,
    MANIFEST_NAME,
    PRETRAINING,
    VOCABULARY,
)
from pipelines.results.marks import building_directory

LATEST = "latest"
EXPORTER = "training.resuming.checkpoint_export:cached_export"
"""Exports a checkpoint to the cache; imported when one is read, since it needs torch and DeepSpeed."""

_NAME = re.compile(rf"{LATEST}|{CHECKPOINT_PREFIX}(\d{{1,10}})")
_MOST_NAMES_SHOWN = 8


@dataclass(frozen=True)
class CheckpointSource:
    """A finished checkpoint: its directory, its manifest, and the workspace with the vocabulary of its run."""

    workspace: str
    directory: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """Such as `step-1000`."""
        return _short(os.path.basename(self.directory))

    @property
    def digest(self) -> str:
        """Hash of all that decides the exported model: weights, architecture and vocabulary."""
        of_run = [self.manifest.config.get("model"), self.manifest.inputs.get(VOCABULARY)]
        return digest_of([self.manifest.digest, *of_run])

    def is_unchanged(self) -> bool:
        """Whether it is still there: a run deletes old checkpoints, and replaces those that it returns from."""
        try:
            return read_manifest(self.directory) == self.manifest
        except (InputError, OSError):
            return False


def checkpoint_names(directory: str) -> list[str]:
    """Finished checkpoints below a directory, oldest first."""
    if storage.is_local(directory):
        names = os.listdir(directory) if os.path.isdir(directory) else []
    else:
        # Files of a remote checkpoint have their names at once, and its manifest is the last of them.
        files = [name.partition("/") for name in storage.list_files(directory)]
        names = [name for name, _, file in files if file == MANIFEST_NAME]
    return sorted(name for name in names if name.startswith(CHECKPOINT_PREFIX))


def checkpoint_of(source: str) -> CheckpointSource | None:
    """The checkpoint that an encoder's source names as `PLACE@step-N` or `PLACE@latest`; None for other sources.

    Raises:
        InputError: as `find_checkpoint`.
    """
    place, _, name = source.rpartition("@")
    if not place or not _NAME.fullmatch(name) or (storage.is_local(source) and os.path.isdir(source)):
        return None
    return find_checkpoint(place, _name_of_latest(place) if name == LATEST else name)


@cache
def _name_of_latest(place: str) -> str:
    """The newest checkpoint of a place when it is first asked for: a trial's key and its weights must be of one."""
    return find_checkpoint(place, LATEST).name


def find_checkpoint(place: str, name: str) -> CheckpointSource:
    """Find a finished checkpoint.

    Args:
        place: a workspace, or the directory of one of its pre-trainings, such as `workspaces/demo/pretraining.1`; a
            path or a URI. In a workspace the run under way comes first, then the finished one.
        name: `step-N`, or `latest` for the newest one.

    Raises:
        InputError: there is no such checkpoint (the line names those that exist), or its manifest is damaged.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name}: not the name of a checkpoint; give {CHECKPOINT_PREFIX}1000, or {LATEST}")
    path = place.rstrip("/")
    if storage.is_local(place):
        path = os.path.abspath(storage.local_path(place))
        if not os.path.isdir(path):
            raise InputError(f"{place}: no such directory; give the workspace of a pre-training")
    workspace, runs = path, _runs_of(path)
    if CHECKPOINTS_DIRECTORY in storage.list_directories(path):
        workspace, runs = os.path.dirname(path), [path]
    found: list[str] = []
    for run in runs:
        directory = storage.join(run, CHECKPOINTS_DIRECTORY)
        names = checkpoint_names(directory)
        chosen = names[-1:] if name == LATEST else [each for each in names if _short(each) == _short(name)]
        if chosen:
            return _opened(workspace, storage.join(directory, chosen[0]))
        found += [_short(each) for each in names]
    raise InputError(f"{place}: no checkpoint {name}; {_in_words(found)}")


def require_unchanged(checkpoint: CheckpointSource) -> None:
    """Refuse what was read from a checkpoint if its run deleted or replaced it meanwhile.

    Raises:
        InputError: it is not there any more.
    """
    if not checkpoint.is_unchanged():
        there = [_short(name) for name in checkpoint_names(os.path.dirname(checkpoint.directory))]
        raise InputError(
            f"{checkpoint.directory}: deleted by its run while it was read (pretraining.keep_checkpoints, "
            f"keep_every_n_steps); {_in_words(there)}"
        )


def _runs_of(workspace: str) -> list[str]:
    stage = storage.join(workspace, PRETRAINING)
    return [building_directory(stage), stage]


def _opened(workspace: str, directory: str) -> CheckpointSource:
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory}: has no manifest, so it is damaged or was just deleted; choose another one")
    if manifest.stage != PRETRAINING:
        raise InputError(
            f"{directory}: a checkpoint of the stage {manifest.stage!r}; only those of {PRETRAINING!r} can be exported"
        )
    return CheckpointSource(workspace, directory, manifest)


def _short(name: str) -> str:
    """`step-1000` for `step-0000001000`."""
    return f"{CHECKPOINT_PREFIX}{int(name.removeprefix(CHECKPOINT_PREFIX))}"


def _in_words(names: list[str]) -> str:
    if not names:
        return "there are none; a run writes one every pretraining.checkpoint_every_steps steps"
    more = f"{len(names) - _MOST_NAMES_SHOWN} earlier ones, " if len(names) > _MOST_NAMES_SHOWN else ""
    return f"there are: {more}{', '.join(names[-_MOST_NAMES_SHOWN:])}"
