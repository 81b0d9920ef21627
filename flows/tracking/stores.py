"""The MLflow store of a run: choose it, open or create it."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from flows.parameters.whole_recipe import WholeRecipe
from flows.servers.databases import sqlite_url
from flows.servers.mlflow_database import (
    DATABASE_NAME,
    artifacts_uri,
    database_path,
    quieten_mlflow,
    set_up_mlflow,
    warn_of_decoded_names,
)
from flows.servers.moved_workspace import relocate
from flows.servers.patient_client import patient, say
from pipelines.contract.credentials import redacted
from pipelines.contract.errors import InputError
from training.tracking.patience import Patience, first_line

if TYPE_CHECKING:  # MLflow takes two seconds to import, which command.py hides behind the start of Prefect's server
    from mlflow import MlflowClient


def tracking_uri(whole: WholeRecipe) -> str:
    """The store of runs and models: the recipe's server, or SQLite in the workspace."""
    return whole.tracking_server or sqlite_url(database_path(whole.run.workspace))


@lru_cache(maxsize=8)
def open_store(uri: str, workspace: str | None, experiment: str) -> tuple[MlflowClient, str, Patience]:
    """Open a tracking store, creating its tables and the experiment if they are missing.

    A new SQLite store takes about two seconds, so a process opens each store once.

    Args:
        uri: of the server or the database.
        workspace: whose database it is; None for a server.
        experiment: name of the experiment.

    Returns:
        The client, the experiment's id, and the patience with which the client waits for an unreachable server.

    Raises:
        InputError: the store does not answer, or the workspace's database cannot be used.
    """
    from mlflow import MlflowClient

    quieten_mlflow()
    artifacts = None
    if workspace is not None:
        set_up_mlflow(workspace)
        relocate(workspace)
        warn_of_decoded_names(workspace)
        artifacts = artifacts_uri(workspace)
    patience = Patience(say)
    try:
        client = patient(MlflowClient(uri, uri), patience)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return client, _created_experiment(client, experiment, artifacts), patience
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
        return client, found.experiment_id, patience
    except _errors_of(uri) as error:
        remedy = f"check {uri}" if workspace is not None else "start that server, or remove the setting"
        raise InputError(
            f"tracking.mlflow_tracking_uri = {redacted(uri)}: cannot be used ({first_line(error)}); {remedy}"
        ) from error


def _errors_of(uri: str) -> tuple[type[Exception], ...]:
    """What a store raises that cannot be used; of a server without importing SQLAlchemy, which takes long."""
    from mlflow.exceptions import MlflowException

    if uri.startswith(("http://", "https://")):
        return (MlflowException,)
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError)


def _created_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # Another flow created it in the meantime.
        found = client.get_experiment_by_name(name)
        assert found is not None
        return str(found.experiment_id)


def open_registry(uri: str) -> MlflowClient:
    """Open the store or server of a model registry.

    Raises:
        InputError: it does not answer.
    """
    from mlflow import MlflowClient

    quieten_mlflow()
    if os.path.basename(path := uri.removeprefix("sqlite:///")) == DATABASE_NAME and path != uri:
        set_up_mlflow(os.path.dirname(os.path.abspath(path)))
    try:
        client = MlflowClient(uri, uri)
        client.search_registered_models(max_results=1)
    except _errors_of(uri) as error:
        # From the environment, so it may contain a password.
        raise InputError(
            f"MLflow at {redacted(uri)} cannot be used ({first_line(error)}); check the address and the server"
        ) from None
    return client
