"""Retries calls to an unreachable MLflow server, with growing pauses, within a time limit, and reports it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.contract.credentials import redacted

ResultT = TypeVar("ResultT")

LIMIT_SECONDS = 180.0
"""Enough time for a server to be restarted, or moved to another machine."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0

_REASON_CHARACTERS = 160
_NO_ANSWER = ("failed with exception", "failed with timeout exception", "failed with error code 5")
"""Starts of MLflow's messages when the response came from a proxy, or there was none."""


class Patience:
    """Retries calls to one server while it is unreachable, for a limited total time until it responds again.

    An unreachable server costs a process the limit once: later calls are tried a single time.
    """

    def __init__(self, say: Callable[[str], None], limit_seconds: float | None = None) -> None:
        self._say = say
        self._limit_seconds = LIMIT_SECONDS if limit_seconds is None else limit_seconds
        self._is_exhausted = False

    def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Call the function and return its result; errors of an unreachable server are raised after the limit only.

        The function may run several times, and a request whose response was lost may have been executed.
        """
        started, pause_seconds, is_away = time.monotonic(), FIRST_PAUSE_SECONDS, False
        while True:
            try:
                result = function()
            except Exception as error:
                left_seconds = self._limit_seconds - (time.monotonic() - started)
                if not is_absence(error) or self._is_exhausted:
                    raise
                if left_seconds <= 0:
                    self._is_exhausted = True
                    raise
                if not is_away:
                    self._say(
                        f"MLflow does not respond ({_shortened(error)}); retrying for up to {self._limit_seconds:.0f} s"
                    )
                is_away = True
                time.sleep(min(pause_seconds, left_seconds))
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            else:
                if is_away:
                    self._say("MLflow responds again")
                self._is_exhausted = False
                return result


def is_absence(error: BaseException) -> bool:
    """Whether an error means that the server is unreachable, or SQLite is locked, rather than a rejection."""
    import requests  # MLflow's own client

    if isinstance(error, (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)):
        return True
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return int(error.get_http_status_code()) >= 500  # type: ignore[no-untyped-call]
    text = str(error)
    return isinstance(error, MlflowException) and (
        "database is locked" in text or (text.startswith("API request to") and any(mark in text for mark in _NO_ANSWER))
    )


def _shortened(error: BaseException) -> str:
    return textwrap.shorten(first_line(error), _REASON_CHARACTERS, placeholder=" ...")


def first_line(error: BaseException) -> str:
    """An error's first line, without the tracking URI: it may contain a password, and MLflow repeats it."""
    return redacted((str(error).splitlines() or [type(error).__name__])[0])
