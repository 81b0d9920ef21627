"""DeepSpeed's all-reduce buffers in /dev/shm: 64 MiB a rank, whose names outlive a rank that was killed too early."""

from __future__ import annotations

import contextlib
import os
import time

DIRECTORY = "/dev/shm"  # noqa: S108 - where DeepSpeed creates them, under names that cannot be chosen
_PREFIX = "deepspeed_allreduce_buffer_"
_YOUNG_SECONDS = 60.0
"""A run may be about to map a buffer that is younger than this."""


def forget_own_buffer() -> None:
    """Take away the name of this rank's buffer, once every rank has mapped it.

    DeepSpeed 0.19.8 leaves it. What is mapped stays mapped; the kernel frees it with the last process, however that
    ends (shm.cpp, shm_initialize).
    """
    address, port, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{DIRECTORY}/{_PREFIX}{os.getuid()}_{address}_{port}_{rank}")


def remove_abandoned_buffers(directory: str = DIRECTORY) -> list[str]:
    """Remove this user's buffers that no process has mapped: what ranks left that were killed while they started."""
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
    """Paths of all files that processes of this user have mapped."""
    paths = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/maps", encoding="utf-8", errors="replace") as maps:
                paths |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if len(line.split(maxsplit=5)) == 6}
    return paths
