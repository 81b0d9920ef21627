"""Migrated databases of Prefect and MLflow, made once: migrations take ten and six seconds of a processor each time.

For tests that are not about creating them; tests/faults/test_set_up.py is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support import REPOSITORY

from flows.servers import mlflow_database
from flows.servers.prefect_database import DATABASE_NAME

_MAKE = {
    "prefect": "from flows.servers.prefect_database import set_up_prefect; set_up_prefect(sys.argv[1])",
    # Without the default experiment, which names the place of artifacts.
    "mlflow": (
        "from mlflow.db import upgrade; upgrade.main([f'sqlite:///{sys.argv[1]}/mlflow.db'], standalone_mode=False)"
    ),
}


def install_prefect_database(home: str) -> None:
    """Give a PREFECT_HOME the database that its server would create."""
    _copy("prefect", os.path.join(home, DATABASE_NAME))


def install_mlflow_database(uri: str) -> str:
    """Create the SQLite database of this URI as MLflow would at its first use; returns the URI."""
    _copy("mlflow", uri.removeprefix("sqlite:///"))
    return uri


def install_in_place_of_migrations(setattr_: Callable[[Any, str, Any], None]) -> None:
    """Let flows in this process start a workspace's MLflow database from the template."""
    migrate = mlflow_database._migrate

    def copy_and_migrate(url: str, artifacts: str) -> None:
        # Another form of address is that of a path with a question mark.
        if url.startswith("sqlite:///") and not os.path.getsize(url.removeprefix("sqlite:///")):
            install_mlflow_database(url)
            # What is left to do: the default experiment.
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            mlflow_database.quieten_mlflow()
            SqlAlchemyStore(url, artifacts)._dispose_engine()
        else:
            migrate(url, artifacts)

    setattr_(mlflow_database, "_migrate", copy_and_migrate)


def _copy(owner: str, path: str) -> None:
    folder = REPOSITORY / "build"
    folder.mkdir(exist_ok=True)
    template = folder / f"{owner}-{version(owner)}.db"
    with open(f"{template}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                command = [sys.executable, "-c", f"import sys; {_MAKE[owner]}", made]
                subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
                (complete,) = Path(made).glob("*.db")
                os.replace(complete, template)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copyfile(template, path)
