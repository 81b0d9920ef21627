"""MLflow's client for a flow: calls are retried while the server is unreachable, which is logged in one line."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any, cast

from flows.console.narration import LOGGER_NAME
from training.tracking.patience import Patience

if TYPE_CHECKING:
    from mlflow import MlflowClient

HTTP_SETTINGS = {
    # Our retries are logged; MLflow's own seven would be silent for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Its own run addresses open the view for language models; ours are in flows/tracking/mlflow_pages.py.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def say(line: str) -> None:
    """Log a line about tracking, on the console and in the run's log."""
    logging.getLogger(LOGGER_NAME).warning("tracking     %s", line)


def patient(client: MlflowClient, patience: Patience) -> MlflowClient:
    """The client, with retries in each of its calls."""
    for name, value in HTTP_SETTINGS.items():
        os.environ.setdefault(name, value)
    return cast("MlflowClient", _PatientClient(client, patience))


class _PatientClient:
    def __init__(self, client: MlflowClient, patience: Patience) -> None:
        self._client, self._patience = client, patience

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def call(*arguments: Any, **named: Any) -> Any:
            return self._patience.call(lambda: attribute(*arguments, **named))

        return call
