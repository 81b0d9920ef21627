"""Servers of others, built once from their Go modules and kept in a cache for all tests and sessions."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class GoProgram:
    """How a program is made: by commands of Go in a folder of its own, which leave it in `building` next to it."""

    module: str
    version: str
    program: str
    commands: Sequence[Sequence[str]]
    """Arguments of `go`. Only the last one must succeed: `go mod tidy -e` may fail over packages nobody imports."""
    timeout_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    write_sources: Callable[[Path], object] | None = None

    @property
    def folder(self) -> Path:
        default = os.path.expanduser("~/.cache/clozeworks/tests")
        return Path(os.environ.get("CLOZEWORKS_TEST_CACHE") or default) / f"{self.module}-{self.version}"

    def cached(self) -> Path | None:
        """The program where it has been built."""
        program = self.folder / self.program
        return program if program.exists() else None

    def built(self) -> Path | None:
        """The program, built at the first call; None where Go is missing or a module cannot be had."""
        if (program := self.cached()) is not None:
            return program
        if (go := go_command()) is None:
            return None
        source = self.folder / "src"
        source.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (program := self.cached()) is not None:
                return program
            if self.write_sources is not None:
                self.write_sources(source)
            building = self.folder / "building"
            for arguments in self.commands:
                result = subprocess.run(
                    ["nice", "-n", "15", go, *arguments],
                    cwd=source,
                    env={**os.environ, "GOBIN": str(building), **self.environment},
                    timeout=self.timeout_seconds,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            if result.returncode:
                print(f"{self.program} cannot be built: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                return None
            (building / self.program).rename(self.folder / self.program)
        return self.cached()


def go_command() -> str | None:
    return shutil.which("go") or shutil.which("/usr/local/go/bin/go")
