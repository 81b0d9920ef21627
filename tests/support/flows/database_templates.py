"""A migrated database of Prefect, made once: its migrations take ten seconds of processor time for each new home."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version

from tests.support import REPOSITORY

from flows.servers.prefect_database import DATABASE_NAME

SET_UP = "import sys; from flows.servers.prefect_database import set_up_prefect; set_up_prefect(sys.argv[1])"


def install_prefect_database(home: str) -> None:
    """Give a PREFECT_HOME the database that its server would create; for tests that are not about creating it."""
    folder = REPOSITORY / "build"
    folder.mkdir(exist_ok=True)
    template = folder / f"prefect-{version('prefect')}.db"
    with open(f"{template}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                subprocess.run([sys.executable, "-c", SET_UP, made], cwd=REPOSITORY, check=True)
                os.replace(os.path.join(made, DATABASE_NAME), template)
    os.makedirs(home, exist_ok=True)
    shutil.copyfile(template, os.path.join(home, DATABASE_NAME))
