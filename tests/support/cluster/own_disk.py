"""A directory of its own for each machine of a test: all at one path, and none sees another's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# The bind mount keeps this machine's directory reachable once the parent of all of them is covered.
_MOUNT = 'mount --bind "$1" "$2" && mount -t tmpfs none "$3" && shift 3 && exec "$@"'


def missing() -> str:
    """What this machine lacks for private directories, by name; empty if nothing is missing."""
    try:
        tried = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unshare"
    return f"mount namespaces ({tried.stderr.strip()})" if tried.returncode else ""


class OwnDisk:
    """The directory of one machine, which its processes see at `place`."""

    def __init__(self, folder: Path, name: str) -> None:
        """Create it.

        Args:
            folder: the same for all machines of a test.
            name: of the machine.
        """
        self.place = folder / "machine"
        self.directory = folder / "disks" / name
        self.place.mkdir(exist_ok=True)
        self.directory.mkdir(parents=True)
        for each in ("tmp", "cache"):
            (self.directory / each).mkdir()

    def command(self, command: list[str]) -> list[str]:
        """A command line that runs with this directory at `place`."""
        paths = [str(self.directory), str(self.place), str(self.directory.parent)]
        return [*_unshare(), "sh", "-c", _MOUNT, "sh", *paths, *command]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that keep caches and temporary files on it."""
        return {
            "PREFECT_HOME": str(self.place / "prefect"),
            "XDG_CACHE_HOME": str(self.place / "cache"),
            "TMPDIR": str(self.place / "tmp"),
        }

    def files(self) -> list[str]:
        """Paths below it, as this process sees them."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())


def _unshare() -> list[str]:
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
