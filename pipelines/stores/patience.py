"""Repeat what a store fails at, with growing pauses, and say once that it is waited for and once that it answers again.

A store that has answered this process before is waited for up to `PATIENCE_SECONDS`, one that never has only briefly:
its address may be wrong. CLOZEWORKS_STORE_PATIENCE_SECONDS sets another time.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.stores.failures import Failure, StoreError, StoreUnavailableError, detail_of, failure_of

PATIENCE_VARIABLE = "CLOZEWORKS_STORE_PATIENCE_SECONDS"
PATIENCE_SECONDS = 900.0
_FIRST_CONTACT_SECONDS = 20.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 15.0

T = TypeVar("T")


def patience_seconds(default: float = PATIENCE_SECONDS) -> float:
    """How long a store is waited for."""
    return float(os.environ.get(PATIENCE_VARIABLE) or default)


class Patience:
    """Waits for one store. Several threads may use it."""

    def __init__(self, store: str, renew: Callable[[], None], diagnose: Callable[[], object]):
        """
        Args:
            store: its name for messages, such as `s3://bucket`.
            renew: connect again with the present credentials.
            diagnose: a request whose error has a cause, for those that have none.
        """
        self._store, self._renew, self._diagnose = store, renew, diagnose
        self._guard = threading.Lock()
        self._has_answered = False
        self._failing_since: float | None = None

    def call(self, place: str, request: Callable[[], T]) -> T:
        """The result of a request, repeated while the store fails with what may pass.

        Raises:
            StoreError: the store refused it.
            StoreUnavailableError: the store failed for longer than it is waited for.
            OSError: anything else, such as a missing file.
        """
        started, pause_seconds = time.monotonic(), _FIRST_PAUSE_SECONDS
        for attempt in itertools.count(1):
            try:
                result = request()
            except OSError as error:
                cause = self._with_cause(error)
                failure = failure_of(cause)
                if failure is None:
                    if error.errno is not None and error.filename is None:
                        raise OSError(error.errno, os.strerror(error.errno), place) from error
                    raise
                line = f"{place}: {failure.what} ({detail_of(cause)})"
                if not failure.passes or attempt == failure.most_attempts:
                    raise StoreError(f"{line}; {failure.remedy}") from error
                waited_seconds, most_seconds = time.monotonic() - started, self._most_seconds()
                if waited_seconds >= most_seconds:
                    raise StoreUnavailableError(
                        f"{line}, for {waited_seconds:.0f} s; {failure.remedy}, and run the same command again"
                    ) from error
                self._say_failing(failure, line, most_seconds)
                time.sleep(min(pause_seconds, most_seconds - waited_seconds) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
                self._renew()
            else:
                self._say_answering()
                return result
        raise AssertionError("unreachable")

    def _with_cause(self, error: OSError) -> OSError:
        """The error of a request with a body, for a HEAD request, whose answer has none."""
        if "No response body" not in str(error):
            return error
        try:
            self._diagnose()
        except OSError as other:
            return other
        return error

    def _most_seconds(self) -> float:
        return patience_seconds(PATIENCE_SECONDS if self._has_answered else _FIRST_CONTACT_SECONDS)

    def _say_failing(self, failure: Failure, line: str, most_seconds: float) -> None:
        with self._guard:
            if self._failing_since is not None:
                return
            self._failing_since = time.monotonic()
        remedy = f"; {failure.remedy}" if "credentials" in failure.what else ""
        print(f"{line}; retrying for up to {most_seconds:.0f} s{remedy}", file=sys.stderr, flush=True)

    def _say_answering(self) -> None:
        self._has_answered = True
        if self._failing_since is None:
            return
        with self._guard:
            since, self._failing_since = self._failing_since, None
        if since is not None:
            print(f"{self._store}: answers again after {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
