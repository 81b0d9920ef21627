"""Packages that the project does not depend on: peers of benchmarks, weights of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import REPOSITORY


def installed(*requirements: str) -> Path:
    """Install packages into a directory of their own below build/, without their dependencies; returns the directory.

    Args:
        requirements: with their versions; the first names the directory.

    Raises:
        RuntimeError: they cannot be had.
    """
    target = REPOSITORY / "build" / requirements[0].replace("==", "-")
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *requirements]
        ended = subprocess.run([sys.executable, *install], capture_output=True, text=True, timeout=300, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{' '.join(requirements)} cannot be fetched from the package index: {reason}")
        os.rename(partial, target)
    return target
