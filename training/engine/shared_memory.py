"""DeepSpeed's all-reduce buffers in /dev/shm: 64 MiB per rank, whose files remain if a rank is killed too early."""

from __future__ import annotations

import contextlib
import os
import time

DIRECTORY = "/dev/shm"  # noqa: S108 - where DeepSpeed creates them, under names that cannot be chosen
_PREFIX = "deepspeed_allreduce_buffer_"
_YOUNG_SECONDS = 60.0
"""A run may still be about to map a younger buffer."""


def forget_own_buffer() -> None:
    """Unlink this rank's buffer, once every rank has mapped it.

    DeepSpeed 0.19.8 does not. The mapping stays valid; the kernel frees it when the last process ends (shm.cpp,
    shm_initialize).
    """
    address, port, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{DIRECTORY}/{_PREFIX}{os.getuid()}_{address}_{port}_{rank}")


def remove_abandoned_buffers(directory: str = DIRECTORY) -> list[str]:
    """Remove this user's buffers that no process has mapped, left by ranks that were killed during start-up."""
    prefix = f"{_PREFIX}{os.getuid()}_"
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return []
    old = [entry.path for entry in found if _is_old_and_ours(entry)]
    mapped = _mapped_files() if old else set()
    abandoned = [path for path in old if path not in mapped]
    for path in abandoned:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    return abandoned


def _is_old_and_ours(entry: os.DirEntry[str]) -> bool:
    try:
        facts = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return facts.st_uid == os.getuid() and not 0 <= time.time() - facts.st_mtime < _YOUNG_SECONDS


def _mapped_files() -> set[str]:
    """Paths of all files mapped by processes of this user."""
    paths = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/maps", encoding="utf-8", errors="replace") as maps:
                paths |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if len(line.split(maxsplit=5)) == 6}
    return paths
