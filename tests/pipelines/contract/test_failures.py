"""One line per failure: the first cause, its path, the remedy; and the exit code."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import re
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from pipelines.contract.errors import DEBUG_VARIABLE, InputError, exit_code_of, failure_line, first_cause, writing
from pipelines.contract.shown_text import shown


def chained(*errors: BaseException) -> BaseException:
    """The last of some errors, each raised while the one before it was handled."""
    for earlier, later in itertools.pairwise(errors):
        later.__context__ = earlier
    return errors[-1]


def system_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


LINES: dict[str, tuple[BaseException, str]] = {
    "input": (InputError("x.toml: wrong"), r"^x\.toml: wrong$"),
    "full": (
        system_error(errno.ENOSPC, "/tmp/a/b"),
        r"^/tmp/a/b: no space left on device, [0-9,]+ bytes are free; free",
    ),
    "quota": (
        system_error(errno.EDQUOT, "/tmp/a"),
        r"^/tmp/a: disk quota exceeded, [0-9,]+ bytes are free; free space",
    ),
    "right": (system_error(errno.EACCES, "/etc/x"), r"^/etc/x: permission denied; grant this user access, or"),
    "read-only": (
        system_error(errno.EROFS, "/mnt/x"),
        r"^/mnt/x: read-only file system; choose a writable path",
    ),
    "below a file": (system_error(errno.ENOTDIR, "/a/b"), r"^/a/b: not a directory; a part of this path is a file"),
    "long": (system_error(errno.ENAMETOOLONG, "/a"), r"^/a: file name too long; choose a shorter path"),
    "another": (system_error(errno.EBUSY, "/a"), r"^/a: device or resource busy; fix this and run the same command"),
    "no path": (
        system_error(errno.EMFILE),
        r"^too many open files; raise the limit with `ulimit -n 65536` \(--debug shows",
    ),
    "pyarrow": (
        OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device", "/w/x.arrow"),
        r"^/w/x\.arrow: no space left on device, [0-9,]+ bytes are free; free space there",
    ),
    "pyarrow's path": (
        OSError(13, "Failed to open local file '/w/y'. Detail: [errno 13] Permission denied"),
        r"^/w/y: permission denied; grant",
    ),
    "rust": (
        Exception("I/O error: No space left on device (os error 28)"),
        r"^no space left on device; free space there",
    ),
    "sqlite": (sqlite3.OperationalError("database or disk is full"), r"^no space left on device; free space there"),
    "torch": (
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        r"^writing failed \(PytorchStreamWriter failed.*\), as it does on a full disk; the disk or",
    ),
    "memory": (MemoryError(), r"^memory ran out; use fewer processes \(run\.workers, ranks\), smaller batches"),
    "torch's memory": (
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        r"^memory ran out \(CUDA out of memory\. Tried to allocate 2\.00 GiB\.\); use fewer processes",
    ),
    "peer": (
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
        r"^another process of this run has ended \(\[gloo.*Connection closed by peer",
    ),
    "connection": (
        ConnectionRefusedError(111, "Connection refused"),
        r"^connection refused; check that the other side",
    ),
    # The first error raised is the one to fix, not those that follow from it.
    "echo": (
        chained(system_error(errno.ENOSPC, "/w/part"), RuntimeError("[enforce fail] . unexpected pos 704 vs 598")),
        r"^/w/part: no space left on device",
    ),
    "cleaning up": (
        chained(system_error(errno.ENOSPC, "/w/part"), system_error(errno.ENOENT, "/w/part.tmp")),
        r"^/w/part: no space left on device",
    ),
    "mistake": (chained(system_error(errno.ENOENT, "/w"), InputError("give a file")), r"^give a file$"),
    "path later": (
        chained(system_error(errno.ENOSPC), system_error(errno.ENOSPC, "/w/x")),
        r"^/w/x: no space left on device",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_the_line(name: str) -> None:
    error, expected = LINES[name]
    line = failure_line(error)
    assert line is not None
    assert re.search(expected, line), line
    assert line == shown(line)


BUGS: dict[str, BaseException] = {
    "assertion": AssertionError("no"),
    "while a file was missing": chained(system_error(errno.ENOENT, "/w"), TypeError("unsupported operand")),
    "torch's own": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "a worker's": RuntimeError("Traceback (most recent call last):\n  File x\nTypeError: no [while running 'X']"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_keeps_its_traceback(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BUGS[name]

    assert failure_line(BUGS[name]) is None
    assert exit_code_of(fail) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("error: this is a bug in Clozeworks (")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(InputError("x"), 2), (system_error(errno.ENOSPC, "/x"), 2), (MemoryError(), 2), (ConnectionResetError("x"), 1)],
)
def test_exit_codes(error: Exception, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_code_of(fail) == exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", said.err)


def test_an_interrupt_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert exit_code_of(interrupt) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume what is not complete\n"


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")

    def fail() -> None:
        raise InputError("x.toml: wrong")

    assert exit_code_of(fail) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "error: x.toml: wrong")


def test_control_characters_stand_as_codes() -> None:
    hostile = "a\x1b[2Jb\nerror: forged\u202e\udcff\u2028 \u00e9\u4e2d"
    assert str(InputError(hostile)) == shown(hostile)
    assert str(copy.copy(InputError(hostile))) == shown(hostile)  # as pickle does, between Beam's processes
    line = failure_line(system_error(errno.ENOENT, hostile))
    assert line is not None
    assert line == shown(line)


def test_writing_names_what_the_disk_refuses_and_nothing_else() -> None:
    with pytest.raises(OSError, match=r"/w/x") as caught, writing("/w/x", 1_234_567):
        raise system_error(errno.ENOSPC)
    assert "1,234,567 bytes were to be written" in (failure_line(caught.value) or "")
    with pytest.raises(FileNotFoundError) as other, writing("/w/x"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert other.value.filename is None


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert first_cause(first) is None


PRINTING = """
    import sys
    from pipelines.commands.command_line import CommandParser
    from pipelines.contract.errors import exit_code_of
    def main():
        CommandParser(prog="x").parse_args()
        for number in range(100_000):
            print("line", number)
    sys.exit(exit_code_of(main))
"""


def command(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *arguments]


def test_a_reader_that_ends_early_is_one_line() -> None:
    with subprocess.Popen(command(PRINTING), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == "error: standard output: broken pipe; its reader has exited, or its disk is full\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the kernel has no /dev/full")
def test_standard_output_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command(PRINTING), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: standard output: no space left on device; its reader has exited, or its disk is full\n"
    )


def test_a_mistake_on_the_command_line_is_one_line() -> None:
    ended = subprocess.run(command(PRINTING, "--nonsense\x1b"), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: unrecognized arguments: --nonsense\\x1b; see x --help\n"


def test_debug_is_inherited_by_what_a_command_starts() -> None:
    code = """
        import os
        from pipelines.commands.command_line import CommandParser
        parser = CommandParser(prog="x")
        parser.parse_known_args()
        print(os.environ.get("CLOZEWORKS_DEBUG"))
    """
    for arguments, expected in ((["--debug"], "1"), ([], "None")):
        ended = subprocess.run(command(code, *arguments), capture_output=True, text=True, check=False)
        assert ended.stdout.strip() == expected


def test_file_names_that_are_no_utf_8_can_be_printed() -> None:
    code = """
        import os, sys
        from pipelines.contract.errors import exit_code_of
        sys.exit(exit_code_of(lambda: print(os.fsdecode(b"a\\xff"))))
    """
    ended = subprocess.run(command(code), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a\\udcff\n", "")
