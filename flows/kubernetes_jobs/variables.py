"""Environment variables of a flow that are written into its Job, where everyone who may read Jobs sees them.

Only named ones are: a pod's environment is that of its image, of the template and of `secrets`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from pipelines.contract.credentials import holds_credentials, is_credential

PASSED = (
    # This project, and what a flow sets for its stages.
    *("CLOZEWORKS_DEBUG", "CLOZEWORKS_STORE_PATIENCE_SECONDS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"),
    *("TOKENIZERS_PARALLELISM", "MLFLOW_DISABLE_TELEMETRY"),
    # The run that the ranks log into.
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"),
    # Where the object store is.
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AZURE_STORAGE_ACCOUNT_NAME"),
    *("GOOGLE_CLOUD_PROJECT", "NCCL_DEBUG"),
)
"""Further ones are named in `pretraining.cluster.environment`, or written into the template."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OF_A_STORE = ("AWS_", "AZURE_", "GOOGLE_", "MLFLOW_")


class Variables(NamedTuple):
    """What a Job gets of a flow's environment, and what it would need but must not hold."""

    values: dict[str, str]
    credentials: tuple[str, ...]
    """Names of credentials that a pod needs and gets from secrets alone."""
    local: tuple[str, ...]
    """Names whose values are a file, a database or a loopback address of the flow's machine."""


def variables_of(environment: Mapping[str, str], further: tuple[str, ...]) -> Variables:
    """Select the variables of a Job.

    Args:
        environment: the flow's own.
        further: names to pass in addition to `PASSED`, with any value that is no credential.
    """
    found = {name: environment[name] for name in sorted({*PASSED, *further}) if name in environment}
    secret = {name for name, value in found.items() if is_credential(name) or holds_credentials(value)}
    local = {name for name in PASSED if name in found and name not in further and _is_local(found[name])}
    if "MLFLOW_TRACKING_URI" in local:
        # A run of another database.
        found.pop("MLFLOW_RUN_ID", None)
    wanted = {name for name in environment if name.startswith(_OF_A_STORE) and is_credential(name)}
    return Variables(
        {name: value for name, value in found.items() if name not in secret | local},
        tuple(sorted(secret | wanted)),
        tuple(sorted(local - secret)),
    )


def _is_local(value: str) -> bool:
    address = urlsplit(value)
    return os.path.isabs(value) or address.scheme in ("file", "sqlite") or address.hostname in _LOOPBACK
