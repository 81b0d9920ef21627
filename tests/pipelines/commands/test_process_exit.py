"""How commands end: exit codes, output, threads and exit handlers as at any exit; then the process is gone at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from tests.support import REPOSITORY

SCRIPT = """
import atexit, sys, threading, time
from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.contract.errors import InputError

class Freed:
    def __del__(self):
        sys.stderr.write("freed one by one\\n")

kept = Freed()
atexit.register(lambda: print("handler"))

def main():
    print("main", end="")
    threading.Thread(target=lambda: (time.sleep(0.3), print(", thread, ", end=""))).start()
    {ending}

run_and_leave_in_order(main)
"""


def ended(ending: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{ending}", ending)],
        cwd=REPOSITORY,
        text=True,
        check=False,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise InputError('recipe.toml: no')", 2, "error: recipe.toml: no\n"),
    ],
)
def test_the_process_ends_as_any_other_without_being_taken_apart(ending: str, code: int, said: str) -> None:
    process = ended(ending)
    assert (process.returncode, process.stdout, process.stderr) == (code, "main, thread, handler\n", said)


def test_a_reader_that_has_exited_is_one_line() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    process = ended("print('x' * 100_000); return 0", stdout=reader.stdin)
    assert process.returncode == 1
    assert process.stderr == "error: standard output: broken pipe; its reader has exited, or its disk is full\n"
