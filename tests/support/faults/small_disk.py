"""A disk of a few megabytes that a test fills, and the output of a command on it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_FILLER = "filler"
_WITHOUT_LOOKING = """
import runpy, sys
from pipelines.contract import storage
storage.require_free_space = lambda *_: None
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass
class SmallDisk:
    """A separate tmpfs or, if this user cannot mount one, a folder in which no file can grow beyond a limit."""

    path: str
    is_mounted: bool
    limit_bytes: int | None = None

    @property
    def reason(self) -> str:
        """The operating system's error when the disk is full."""
        return os.strerror(errno.ENOSPC if self.is_mounted else errno.EFBIG).lower()

    def leave_free(self, free_bytes: int) -> None:
        """Fill the disk, leaving this number of bytes."""
        if not self.is_mounted:
            self.limit_bytes = free_bytes
            return
        with open(os.path.join(self.path, _FILLER), "wb") as stream:
            while (more := shutil.disk_usage(self.path).free - free_bytes) > 0:
                stream.write(bytes(min(more, 1 << 20)))
                stream.flush()

    def make_room(self) -> None:
        """Remove the filler."""
        self.limit_bytes = None
        if self.is_mounted:
            os.remove(os.path.join(self.path, _FILLER))

    def start(self, command: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command under the disk's limit."""
        return subprocess.Popen(
            command,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=self._limiter(),
        )

    def run(self, module: str, *arguments: str, fills_meanwhile: bool = False) -> tuple[int, str]:
        """Exit code and output of one of our commands.

        Args:
            module: of the command.
            arguments: its command line.
            fills_meanwhile: the command found room when it began, as where another program fills the disk later.
        """
        start = ["-c", _WITHOUT_LOOKING, module] if fills_meanwhile else ["-m", module]
        process = self.start([sys.executable, "-W", "ignore", *start, *arguments])
        try:
            output, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        return process.returncode, output

    def _limiter(self) -> Callable[[], None] | None:
        limit = self.limit_bytes
        if limit is None:
            return None
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@contextmanager
def small_disk(path: str, size_bytes: int) -> Iterator[SmallDisk]:
    """A disk at `path` that is removed when the block ends."""
    os.makedirs(path)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path]
    is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield SmallDisk(path, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", path], check=True)


def error_lines(output: str) -> list[str]:
    """The lines in which a command reports why it ended; there must be no traceback next to them."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error: ")]
