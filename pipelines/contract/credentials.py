"""Find credentials in a recipe: it is logged, copied into manifests and published with its models.

They belong in the environment, where MLflow, Arrow and the cloud tools look for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_PASSWORD = re.compile(r"://[^/?#\s@:]*:(?!\d+(?:/|$))[^?#\s]*@")
"""`scheme://user:password@host`; a port is not a password, and an unescaped slash does not hide one."""
_TOKEN_AS_USER = re.compile(r"^https?://[^/?#\s@]+@")
_KEY_PARAMETER = re.compile(
    r"[?&;](?:[A-Za-z0-9_.-]*[_.-])?"
    r"(?:password|passwd|secret|token|signature|sig|credential|access[_-]?key(?:[_-]?id)?|secret[_-]?key|api[_-]?key)=",
    re.IGNORECASE,
)
"""Among a URI's parameters: `?secret_key=...`, a signed URL's `X-Amz-Signature=...`."""

_USER_INFO = re.compile(r"://[^/?#\s@]*@|://[^/?#\s@:]*:(?!\d+(?:/|$))[^?#\s]*@")
_KEY_VALUE = re.compile(_KEY_PARAMETER.pattern.join(("(", ")")) + r"[^&;\s]*", re.IGNORECASE)

_NAME = re.compile(
    r"PASSWORD|PASSWD|SECRET|CREDENTIAL|CONNECTION_STRING|API_?KEY|TOKEN(?!IZ)|(?:^|_)(?:KEY|SAS|AUTH)(?:_|$)",
    re.IGNORECASE,
)

_REMEDIES = {
    "http": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN,",
    "https": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN,",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE,",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "postgresql": "set PGUSER and PGPASSWORD, or PGPASSFILE,",
}
_OTHERWISE = "pass them to its client library"


def refusal(tables: Mapping[str, Any]) -> str | None:
    """Why a recipe is refused: the first key whose value holds credentials, never the value; None if there is none.

    Args:
        tables: the complete recipe, overrides applied.
    """
    for key, text in _texts("", tables):
        if holds_credentials(text):
            scheme = text.partition("://")[0].partition("+")[0].lower()
            remedy = _REMEDIES.get(scheme, _OTHERWISE)
            return (
                f"{key} holds credentials, but a recipe is logged and published with its models; remove them and "
                f"{remedy} in the environment"
            )
    return None


def holds_credentials(text: str) -> bool:
    """Whether a URI holds a password, a token or a key."""
    if "://" not in text:
        return False
    return any(pattern.search(text) for pattern in (_PASSWORD, _TOKEN_AS_USER, _KEY_PARAMETER))


def is_credential(name: str) -> bool:
    """Whether an environment variable of this name holds a credential, such as AWS_ACCESS_KEY_ID."""
    return _NAME.search(name) is not None


def redacted(text: str) -> str:
    """A message without the credentials of the URIs in it."""
    return _KEY_VALUE.sub(r"\1***", _USER_INFO.sub("://***@", text))


def _texts(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text below a value, with its dotted key."""
    if isinstance(value, str):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{prefix}.{index}", item)
