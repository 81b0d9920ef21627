"""Turn an exception into one line for the user: path, problem, remedy. Every command uses it.

Exit codes: 0 complete; 1 a failure that may not recur when the command is run again (a connection), or a bug; 2 the
user has to change something first: recipe, data, disk, permissions, memory; 130 interrupted. `--debug`, or
CLOZEWORKS_DEBUG=1 in the environment, which child processes inherit, shows tracebacks too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.contract.shown_text import shown
from pipelines.stores.failures import StoreError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75
"""EX_TEMPFAIL: training stopped after a checkpoint; a scheduler may start it again, and it resumes there."""
EXIT_INTERRUPTED = 130

DEBUG_VARIABLE = "CLOZEWORKS_DEBUG"

_INTERRUPTED = "interrupted; run the same command again to resume what is not complete"
_SHOWN_CHARACTERS = 2_000
_AGAIN = "and run the same command again"

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory", re.IGNORECASE)
_PEER_GONE = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed|NCCL.*remote", re.I
)
_TORCH_WRITE = re.compile(r"PytorchStreamWriter failed|file write failed|iostream error|unexpected pos \d+ vs \d+")
_ERROR_NUMBER = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
"""How Arrow and libraries written in Rust quote the operating system's error within their own messages."""
_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "disk I/O error": errno.EIO,
}
_REMEDIES = {
    errno.EACCES: "grant this user access, or choose another path",
    errno.EPERM: "grant this user access, or choose another path",
    errno.EROFS: "choose a writable path, or mount this one for writing",
    errno.ENOTDIR: "a part of this path is a file; choose another path",
    errno.EISDIR: "choose a file",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a symbolic link in this path leads back to itself; fix it",
    errno.ENOENT: "it was removed meanwhile, or the path is mistyped",
    errno.EMFILE: "raise the limit with `ulimit -n 65536`",
    errno.ENFILE: "close other programs, or raise the system's limit fs.file-max",
    errno.EFBIG: "the file size limit is reached; raise `ulimit -f`, or choose another disk",
    errno.EIO: "the disk or the network drive is failing; check the system log",
    errno.ENODEV: "the disk or the network drive is gone; reconnect it",
    errno.ESTALE: f"the network drive was replaced; remount it {_AGAIN}",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_WRITING = (*_FULL, errno.EFBIG, errno.EIO, errno.EROFS)
_QUOTED_PATH = re.compile(r"'(/[^'\n]*)'")
"""Arrow names the path only in its message."""
_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Raised while another error is handled, one of these is the bug to fix, not that error."""


class InputError(ValueError):
    """User error (recipe, path, data): shown as one line, without a traceback.

    Control characters of names and values are escaped, so a message is one line and cannot act on a terminal.
    """

    def __init__(self, message: str):
        super().__init__(shown(message))


def is_debug() -> bool:
    """Whether to show tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


@contextmanager
def writing(path: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Add to errors of a full or failing disk the path that was written and, if known, the number of bytes.

    Arrow's errors, and those of an open file, hold no path.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            error.filename = path
        if needed_bytes is not None and error.errno in _FULL:
            error.add_note(f"{needed_bytes:,} bytes were to be written")
        raise


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run a command's main and return its exit code; on failure, print one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be UTF-8, and must not abort a command that only prints it.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        exit_code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - shown to the user, bugs with their traceback
        return report(error)
    return exit_code


def report(error: BaseException) -> int:
    """Print the line of a failure on stderr, for a bug its traceback too; return the exit code."""
    if (closed := _closed_output(error)) is not None:
        print(f"error: {closed}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    line = failure_line(error)
    if line is None or is_debug():
        traceback.print_exception(error)
    if line is None:
        what = shown(f"{type(error).__name__}: {error}")[:200]
        line = f"this is a bug in Clozeworks ({what}); please report it with the lines above"
        print(f"error: {line}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    print(f"error: {line}", file=sys.stderr, flush=True)
    return EXIT_FAILED if isinstance(first_cause(error), ConnectionError | TimeoutError) else EXIT_BAD_INPUT


def failure_line(error: BaseException) -> str | None:
    """One line about the first cause of an error; None if it is neither a user error nor a system error."""
    cause = first_cause(error)
    if cause is None:
        return None
    if isinstance(cause, InputError):
        return str(cause)
    if isinstance(cause, StoreError):
        return shown(str(cause))[:_SHOWN_CHARACTERS]
    line = _memory_line(cause) if isinstance(cause, MemoryError) else _system_line(cause)
    return shown(line)[:_SHOWN_CHARACTERS]


def first_cause(error: BaseException) -> InputError | OSError | MemoryError | None:
    """The error that started it, if it can be shown in one line: one that states it first, then a system error."""
    found: list[InputError | OSError | MemoryError] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        found += _explainable(current)
        hides_context = current.__suppress_context__ or (isinstance(current, _BUGS) and not _explainable(current))
        current = current.__cause__ or (None if hides_context else current.__context__)
    found.reverse()
    stated = (cause for cause in found if isinstance(cause, InputError | StoreError))
    first = next(stated, found[0] if found else None)
    if isinstance(first, OSError) and not _path_of(first):
        # An error that wraps it may hold the path.
        same = (cause for cause in found if isinstance(cause, OSError) and cause.errno == first.errno)
        first = next(filter(_path_of, same), first)
    return first


def _path_of(error: OSError) -> str:
    """The path that an error names; empty if it names none."""
    if isinstance(error.filename, str | bytes):
        return os.fsdecode(error.filename)
    quoted = _QUOTED_PATH.search(str(error))
    return quoted[1] if quoted else ""


def _explainable(error: BaseException) -> list[InputError | OSError | MemoryError]:
    """An error, or the one that it quotes, if it can be shown in one line; outermost first."""
    if isinstance(error, InputError | MemoryError):
        return [error]
    text = str(error)
    if isinstance(error, OSError):
        if error.errno is None and (number := _quoted_number(text)):
            return [OSError(number, os.strerror(number), error.filename)]
        return [error]
    if type(error).__module__.partition(".")[0] == "sqlite3":
        for message, number in _SQLITE.items():
            if message in text:
                return [OSError(number, f"{os.strerror(number)} (SQLite: {message})")]
    if number := _quoted_number(text):
        return [OSError(number, os.strerror(number))]
    if isinstance(error, RuntimeError) and text:
        if _OUT_OF_MEMORY.search(text):
            return [MemoryError(text.splitlines()[0])]
        if _PEER_GONE.search(text):
            return [ConnectionError(f"another process of this run has ended ({text.splitlines()[0][:200]})")]
        if _TORCH_WRITE.search(text):
            return [OSError(errno.EIO, f"writing failed ({text.splitlines()[0]}), as it does on a full disk")]
    return []


def _quoted_number(text: str) -> int | None:
    match = _ERROR_NUMBER.search(text)
    return int(match[1] or match[2]) if match else None


def _memory_line(error: MemoryError) -> str:
    detail = f" ({first})" if (first := next(iter(str(error).splitlines()), "")) else ""
    return (
        f"memory ran out{detail}; use fewer processes (run.workers, ranks), smaller batches (micro_batch_size, "
        "max_record_bytes), or a machine with more memory"
    )


def _system_line(error: OSError) -> str:
    path = _path_of(error)
    start = f"{path}: " if path else ""
    if error.errno is None:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"{start}{first}{_where(path)}"
    what = error.strerror if error.errno == errno.EIO and error.strerror else os.strerror(error.errno)
    what = what[0].lower() + what[1:]
    if error.errno in _FULL:
        return f"{start}{what}{_space(path, error)}; free space there {_AGAIN}{_where(path)}"
    if isinstance(error, ConnectionError | TimeoutError):
        return f"{start}{what}; check that the other side is running and reachable, {_AGAIN}{_where(path)}"
    target = f" (to {os.fsdecode(error.filename2)})" if isinstance(error.filename2, str | bytes) else ""
    return f"{start}{what}{target}; {_REMEDIES.get(error.errno, f'fix this {_AGAIN}')}{_where(path)}"


def _space(path: str, error: OSError) -> str:
    """Free bytes at a path, and the bytes that were needed, if known."""
    needed = "".join(f", {note}" for note in getattr(error, "__notes__", []))
    place = os.path.abspath(path) if path and "://" not in path else ""
    while place and not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if not place:
        return needed
    return f", {shutil.disk_usage(place).free:,} bytes are free{needed}"


def _where(path: str) -> str:
    return "" if path else " (--debug shows where)"


def _closed_output(error: BaseException) -> str | None:
    """Why standard output accepts nothing more, if that is what failed; it is then redirected to /dev/null."""
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in (errno.EPIPE, *_OF_WRITING):
        return None
    try:
        os.write(1, b"\n")
        return None
    except OSError as problem:
        reason = os.strerror(problem.errno or errno.EIO)
    # At exit the interpreter flushes its buffers, and would print another traceback.
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    return f"standard output: {reason.lower()}; its reader has exited, or its disk is full"
