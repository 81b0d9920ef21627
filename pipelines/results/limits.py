"""Bounds the number of earlier results that are kept."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.workspace import MANIFEST_NAME
from pipelines.results.builds import foreign_names
from pipelines.results.kept import delete_directory, kept_directories


def limit_kept(directory: str, most: int, run_names: tuple[str, ...]) -> Iterator[str]:
    """Remove the oldest kept results until `most` are left; call it when the stage is complete, under its lock.

    Unfinished runs, damaged results, and results with files that a user added or edited do not count and stay.

    Args:
        directory: of the stage's result.
        most: number of kept results.
        run_names: names besides those of the manifest that the stage itself writes; a directory ends with a slash.

    Yields:
        A line for each result that was removed, or that stays for its user's files.
    """
    finished = []
    for kept in kept_directories(directory):
        try:
            manifest = read_manifest(kept)
        except InputError:
            continue
        if manifest is not None:
            finished.append((completed_at_ns(kept), kept, manifest))
    surplus = sorted(finished, key=lambda each: each[:2])[: max(0, len(finished) - most)]
    for _, kept, manifest in surplus:
        if foreign := _foreign(kept, manifest, run_names):
            yield f"{kept} stays, as it has files that no run wrote ({foreign[0]}); clozeworks remove deletes it"
            continue
        delete_directory(kept)
        yield f"{kept} is removed: keep_finished = {most} keeps the newest earlier results only"


def completed_at_ns(directory: str) -> int:
    """When a result was completed, in nanoseconds since 1970: the time of its manifest; 0 without one."""
    filesystem, path = storage.filesystem_of(storage.join(directory, MANIFEST_NAME))
    return int(filesystem.get_file_info(path).mtime_ns or 0)


def _foreign(directory: str, manifest: Manifest, run_names: tuple[str, ...]) -> list[str]:
    names = foreign_names(directory, manifest)
    folders = tuple(name for name in run_names if name.endswith("/"))
    return [name for name in names if name not in run_names and not (folders and name.startswith(folders))]
