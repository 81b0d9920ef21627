"""MLflow's SQLite database in a workspace: its path, its artifacts, and how it is set up."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from pathlib import Path

from flows.servers.databases import Database, revision_of, set_up, sqlite_url, tables_of
from flows.servers.patient_client import say
from pipelines.contract import storage

DATABASE_NAME, ARTIFACTS_NAME = "mlflow.db", "mlartifacts"
_ENCODED = re.compile("%[0-9A-Fa-f]{2}")

HOLDINGS = ("runs", "registered_models", "model_versions", "logged_models", "trace_info")


def database_path(workspace: str) -> str:
    """Path of the database of a local workspace."""
    return storage.join(storage.local_path(workspace), DATABASE_NAME)


def artifacts_uri(workspace: str) -> str:
    """URI of the artifacts of a local workspace; quoted, because MLflow decodes plain paths too."""
    return Path(storage.local_path(workspace), ARTIFACTS_NAME).as_uri()


def set_up_mlflow(workspace: str) -> str:
    """Make sure that a local workspace has a complete MLflow database; returns its URL.

    Raises:
        InputError: it cannot be created, or has runs and is damaged; see `flows.servers.databases.set_up`.
    """
    path = database_path(workspace)

    def migrate(building: str) -> None:
        _migrate(sqlite_url(building), artifacts_uri(workspace))

    os.makedirs(os.path.join(os.path.dirname(path), ARTIFACTS_NAME), exist_ok=True)
    set_up(Database(path, "MLflow", HOLDINGS, _is_current, migrate))
    return sqlite_url(path)


def warn_of_decoded_names(workspace: str) -> None:
    """Warn if models do not load from this path: MLflow decodes a local path a second time when it reads a model."""
    path = storage.local_path(workspace)
    if found := _ENCODED.search(path):
        say(
            f"{path}: MLflow loads no models from a path with {found[0]!r} in it, all else works; "
            "rename the directory to load them"
        )


def quieten_mlflow() -> None:
    """Silence MLflow: it logs each of its tables and migrations at level INFO, and sets the level when imported.

    `training.tracking.patience` reports once what its HTTP client logs for each attempt.
    """
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of errors that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _is_current(connection: sqlite3.Connection) -> bool:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _get_latest_schema_revision  # MLflow itself compares with it

    quieten_mlflow()
    revision = revision_of(connection)
    latest = _get_latest_schema_revision()  # type: ignore[no-untyped-call]
    return revision == latest and set(Base.metadata.tables) <= tables_of(connection)


def _migrate(url: str, artifacts: str) -> None:
    from click.exceptions import Abort
    from mlflow.db import upgrade
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    quieten_mlflow()
    # The command `mlflow db upgrade`, which accepts an empty database too.
    try:
        upgrade.main([url], standalone_mode=False)
    except Abort as error:  # click raises it on Ctrl-C
        raise KeyboardInterrupt from error
    # The store adds the default experiment, whose artifacts would otherwise go to ./mlruns.
    SqlAlchemyStore(url, artifacts)._dispose_engine()  # type: ignore[no-untyped-call]
