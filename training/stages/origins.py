"""The checkpoint of a finished run that another run was continued from: a part of its stage key."""

from __future__ import annotations

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.results.kept import kept_directories
from pipelines.results.marks import is_open, read_mark

CONTINUED_FROM = "continued_from"
"""Name of a stage's input: the digest of the checkpoint with which its run started."""


def with_origin(key: StageKey, digest: str | None) -> StageKey:
    """The key of a run that started from the checkpoint with this digest; `key` itself without one."""
    if digest is None:
        return key
    return StageKey(key.stage, key.stage_version, key.config, {**key.inputs, CONTINUED_FROM: digest})


def recorded_origin(key: StageKey, directory: str) -> str | None:
    """The checkpoint that a run of these settings was continued from, so that its command needs no flag any more.

    The result counts first, then kept results, newest first, then the build in progress.

    Args:
        key: without an origin.
        directory: of the stage's result.
    """
    for place in (directory, *reversed(kept_directories(directory))):
        try:
            if key.difference(place) is None:
                return None
            manifest = read_manifest(place)
            digest = manifest.inputs.get(CONTINUED_FROM) if manifest is not None else None
            if digest is not None and with_origin(key, digest).difference(place) is None:
                return digest
        except InputError:
            continue  # damaged or newer: whatever replaces it reports that
    mark = read_mark(directory) if is_open(directory) else None
    found = mark["inputs"].get(CONTINUED_FROM) if mark is not None else None
    return found if mark is not None and found and with_origin(key, found).digest == mark["key"] else None
