"""DeepSpeed's CPU communication operator, compiled once, by one process.

DeepSpeed compiles it on first use, which takes minutes on a cold start, and a process killed meanwhile may leave a
`lock` file on which every later run waits forever. So the compiled operators are stored in a directory of this
installation, one process at a time loads or builds them under a lock that the kernel releases when its holder dies,
and the holder of that lock may remove stale `lock` files.
"""

from __future__ import annotations

import fcntl
import glob
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.contract.errors import InputError

EXTENSIONS_VARIABLE = "TORCH_EXTENSIONS_DIR"


_GUARD_NAME = "clozeworks.lock"


_POLL_SECONDS = 0.05


_SILENT_SECONDS = 30.0
"""Ranks load one after another, within seconds; compiling takes minutes."""


def extensions_directory() -> str:
    """Directory of compiled operators: `TORCH_EXTENSIONS_DIR`, or one inside the virtual environment."""
    return os.environ.setdefault(EXTENSIONS_VARIABLE, os.path.join(sys.prefix, "torch_extensions"))


@contextmanager
def _sole_builder(directory: str) -> Iterator[None]:
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, _GUARD_NAME)
    with open(path, "w") as guard:
        deadline = time.monotonic() + _SILENT_SECONDS
        while not _try_to_lock(guard.fileno()):
            if time.monotonic() > deadline:
                print(f"waiting for another process to build DeepSpeed's operators ({path})", file=sys.stderr)
                fcntl.flock(guard, fcntl.LOCK_EX)
                break
            time.sleep(_POLL_SECONDS)
        yield


def _try_to_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale_locks(directory: str) -> list[str]:
    """Delete `lock` files of dead builds; only the holder of the guard may call it."""
    stale = sorted(
        glob.glob(os.path.join(directory, "*", "lock")) + glob.glob(os.path.join(directory, "*", "*", "lock"))
    )
    for path in stale:
        os.remove(path)
    return stale


def load_communication_operator() -> bool:
    """Load DeepSpeed's shared-memory communication operator, compiling it if necessary.

    Returns:
        False if this platform has no such operator and DeepSpeed falls back to gloo.

    Raises:
        InputError: the compiler failed.
    """
    directory = extensions_directory()
    # Two versions of ninja hash a command differently and rebuild each other's output: always use ours.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    with _sole_builder(directory):
        remove_stale_locks(directory)
        from deepspeed.accelerator import get_accelerator
        from deepspeed.ops import __compatible_ops__

        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
        if builder is None or not __compatible_ops__.get(builder.NAME, False):
            return False
        try:
            builder.load(verbose=False)
        except (RuntimeError, OSError) as error:
            first_line = (str(error).splitlines() or ["no message"])[0]
            raise InputError(
                f"{directory}: DeepSpeed's operator {builder.NAME} could not be compiled ({first_line}); "
                "install a C++ compiler (g++) and run python -m training.build_ops"
            ) from error
    return True
