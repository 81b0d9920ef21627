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
    verification = Verification(workspace, stage, manifest, is_needed)
    verification.verify()
    verification.record()
    return len(verification.pending)


def verify_read(workspace: str, stage: str, manifest: Manifest, is_needed: Callable[[FileRecord], bool]) -> None:
    """Verify large files before they are read.

    Raises:
        InputError: as `verify_file`.
    """
    verification = verification_before_reading(workspace, stage, manifest, is_needed)
    verification.verify()
    verification.record()


def verification_before_reading(
    workspace: str, stage: str, manifest: Manifest, is_needed: Callable[[FileRecord], bool]
) -> Verification:
    """The verification of large files: local ones as `verify_stage`, remote ones by their sizes alone.

    The checksum of a remote file is compared while it is copied (`pipelines.staging`), so it is read once only.
    """
    is_local = storage.is_local(storage.join(workspace, stage))
    return Verification(workspace, stage, manifest, is_needed, only_sizes=not is_local)


class Verification:
    """The files of a stage that are due to be verified, which several processes may share.

    All of them create it, each verifies its part, and when every part is done, one of them records it.
    """

    def __init__(
        self,
        workspace: str,
        stage: str,
        manifest: Manifest,
        is_needed: Callable[[FileRecord], bool],
        only_sizes: bool = False,
    ) -> None:
        """
        Args:
            workspace: of the run.
            stage: its name, which is also that of its directory.
            manifest: of the stage.
            is_needed: which of its files are consumed.
            only_sizes: compare sizes, each time, instead of checksums.
        """
        self._directory, self._manifest, self._only_sizes = storage.join(workspace, stage), manifest, only_sizes
        self._memory_uri = storage.join(workspace, VERIFIED_DIRECTORY, stage.replace("/", "-") + ".json")
        self._known: dict[str, list[Any]] = {}
        self._contents: dict[str, list[Any]] = {}
        self._needed = [file for file in manifest.files if is_needed(file)]
        self.pending = self._needed
        """The files to verify: those that were not verified before."""
        if not only_sizes:
            self._known = _read_memory(self._memory_uri)
            # Taken before a file is read: a file exchanged meanwhile does not count as verified.
            self._contents = {file.name: _content(self._directory, file) for file in self._needed}
            self.pending = [file for file in self._needed if self._known.get(file.name) != self._contents[file.name]]

    def verify(self, number: int = 0, of: int = 1) -> None:
        """Verify every `of`-th of the needed files from file `number` on, as far as it is pending.

        Raises:
            InputError: as `verify_file`, for the first file that differs.
        """
        verify = verify_size if self._only_sizes else verify_file
        # By the place among all files: processes on different nodes may find different ones pending.
        pending = {file.name for file in self.pending}
        own = [file for file in self._needed[number::of] if file.name in pending]
        with ThreadPoolExecutor(_THREADS) as threads:
            # Hashing and reading release the interpreter's lock.
            list(threads.map(lambda file: verify(self._directory, file), own))

    def record(self) -> None:
        """Record that all files are verified, so that they are not read again."""
        if self._only_sizes or not self.pending:
            return
        named = {file.name for file in self._manifest.files}
        known = {name: content for name, content in self._known.items() if name in named}
        known |= {file.name: self._contents[file.name] for file in self.pending}
        # Without the record, files are only read again, which is no reason to stop a stage.
        with contextlib.suppress(InputError, OSError):
            storage.write_bytes(self._memory_uri, json.dumps(known, sort_keys=True).encode())


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
