"""Check that what a stage consumes is what its manifest states: every checksum, but each content only once.

A verified file is recorded with size, modification time and inode, so the next run of any stage only queries the file
system. A file that was rewritten, exchanged or copied is read again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyarrow import fs

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, require_manifest, verify_file, verify_size

VERIFIED_DIRECTORY = ".verified"
_THREADS = 4


def require_stage(
    workspace: str, stage: str, command: str, is_needed: Callable[[FileRecord], bool] = lambda _: True
) -> Manifest:
    """Read the manifest of a stage that another one consumes, and verify its files.

    Args:
        workspace: of the run.
        stage: its name, which is also that of its directory.
        command: that builds it.
        is_needed: which of its files are consumed.

    Raises:
        InputError: the stage is not complete, or a file is missing or damaged; the line names it.
    """
    manifest = require_manifest(storage.join(workspace, stage), stage, command)
    verify_stage(workspace, stage, manifest, is_needed)
    return manifest


def verify_stage(
    workspace: str, stage: str, manifest: Manifest, is_needed: Callable[[FileRecord], bool] = lambda _: True
) -> int:
    """Compare the files of a stage with its manifest.

    Returns:
        How many files were read: those that were not verified before.

    Raises:
        InputError: as `verify_file`, for the first file that differs.
    """
    directory = storage.join(workspace, stage)
    memory_uri = storage.join(workspace, VERIFIED_DIRECTORY, stage.replace("/", "-") + ".json")
    known = _read_memory(memory_uri)
    needed = [file for file in manifest.files if is_needed(file)]
    # Taken before a file is read: a file exchanged meanwhile does not count as verified.
    contents = {file.name: _content(directory, file) for file in needed}
    unknown = [file for file in needed if known.get(file.name) != contents[file.name]]
    with ThreadPoolExecutor(_THREADS) as threads:
        # Hashing and reading release the interpreter's lock.
        list(threads.map(lambda file: verify_file(directory, file), unknown))
    if unknown:
        named = {file.name for file in manifest.files}
        known = {name: content for name, content in known.items() if name in named}
        known |= {file.name: contents[file.name] for file in unknown}
        # Without the record, files are only read again, which is no reason to stop a stage.
        with contextlib.suppress(InputError, OSError):
            storage.write_bytes(memory_uri, json.dumps(known, sort_keys=True).encode())
    return len(unknown)


def verify_read(workspace: str, stage: str, manifest: Manifest, is_needed: Callable[[FileRecord], bool]) -> None:
    """Verify large files before they are read: local ones as `verify_stage`, remote ones by their sizes alone.

    The checksum of a remote file is compared while it is copied (`pipelines.staging`), so it is read once only.

    Raises:
        InputError: as `verify_file`.
    """
    directory = storage.join(workspace, stage)
    if storage.is_local(directory):
        verify_stage(workspace, stage, manifest, is_needed)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda file: verify_size(directory, file), filter(is_needed, manifest.files)))


def _content(directory: str, file: FileRecord) -> list[Any]:
    """What identifies a file's content without reading it, and its expected checksum."""
    filesystem, path = storage.filesystem_of(storage.join(directory, file.name))
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        return []
    inode = os.stat(path).st_ino if isinstance(filesystem, fs.LocalFileSystem) else 0
    return [int(info.size), int(info.mtime_ns or 0), inode, file.sha256]


def _read_memory(uri: str) -> dict[str, list[Any]]:
    """What was verified before; a damaged record counts as empty."""
    if storage.file_size_bytes(uri) is None:
        return {}
    try:
        known = json.loads(storage.read_bytes(uri))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}
