"""Peers of benchmarks: packages that the project does not depend on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import REPOSITORY


def installed(*requirements: str) -> Path:
    """Install packages into a directory of their own below build/, without their dependencies; returns the directory.

    Args:
        requirements: with their versions; the first names the directory.
    """
    target = REPOSITORY / "build" / requirements[0].replace("==", "-")
    if not target.is_dir():
        install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *requirements]
        subprocess.run([sys.executable, *install], check=True)
    return target
