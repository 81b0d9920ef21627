"""Progress of a stage as a progress bar on Prefect's page, parsed from the lines that the stage prints."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

INTERVAL_SECONDS = 5.0
"""Interval between updates of the bar; each is one request."""
LAST_UPDATE_SECONDS = 5.0
"""Time-out of the bar's last update."""

# `pretraining: step 40/2,200: loss ...`, `... epoch 1/4: ...` and `documents: 5 of 16 shards after 4 s`
_COUNTS = re.compile(r"(?:\b(?:step|epoch) ([\d,]+)/([\d,]+):)|(?:: ([\d,]+) of ([\d,]+) \w+)")


def percentage_in(line: str) -> float | None:
    """Progress that a line reports, 0 to 100; None if it reports none."""
    found = _COUNTS.search(line)
    if found is None:
        return None
    done, total = (int(text.replace(",", "")) for text in found.groups() if text is not None)
    return 100.0 * min(done, total) / total if total else None


def artifact_key(*parts: str) -> str:
    """A key that Prefect accepts for an artifact: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class StageProgress:
    """The progress bar of one stage of one run.

    Requests run in a separate thread, never in the one that reads the stage's lines: a slow or unreachable server
    costs updates of the bar, never the stage. A pending update is replaced by a later one.
    """

    def __init__(self, run_name: str, stage: str, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]):
        self._key = artifact_key(run_name, stage, "progress")
        self._logger = logger
        self._artifact_id: UUID | None = None
        self._next_update = 0.0
        self._lock = threading.Lock()
        self._waiting: tuple[float, str] | None = None
        self._sender: threading.Thread | None = None
        self._failures = 0

    def observe(self, line: str) -> None:
        """Show the progress that a line reports, at most once in `INTERVAL_SECONDS`."""
        percentage = percentage_in(line)
        if percentage is not None and time.monotonic() >= self._next_update:
            self._offer(percentage, line)

    def complete(self) -> None:
        """Show completion; wait at most `LAST_UPDATE_SECONDS` for the server to accept it."""
        self._offer(100.0, "complete")
        sender = self._sender
        if sender is not None:
            sender.join(LAST_UPDATE_SECONDS)
        with self._lock:
            unsent = self._failures + (self._waiting is not None)
            is_waiting = self._sender is not None
            self._waiting = None
        if unsent or is_waiting:
            self._logger.warning(
                "Prefect's server did not accept %d updates of the progress bar; the stage itself is not affected",
                max(unsent, 1),
            )

    def _offer(self, percentage: float, description: str) -> None:
        self._next_update = time.monotonic() + INTERVAL_SECONDS
        with self._lock:
            self._waiting = (percentage, description)
            if self._sender is None:
                # A thread that ends by itself leaves nothing behind if the stage is interrupted. The context names the
                # task run that the artifact belongs to.
                context = contextvars.copy_context()
                self._sender = threading.Thread(target=context.run, args=(self._send,), name="progress-bar")
                self._sender.daemon = True
                self._sender.start()

    def _send(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._sender = None
                    return
                percentage, description = self._waiting
                self._waiting = None
            try:
                self._show(percentage, description)
            except (httpx.HTTPError, PrefectException, OSError, RuntimeError):
                with self._lock:
                    self._failures += 1

    def _show(self, percentage: float, description: str) -> None:
        if self._artifact_id is None:
            # Outside an event loop it returns the id directly.
            self._artifact_id = cast(UUID, create_progress_artifact(percentage, self._key, description))
        else:
            update_progress_artifact(self._artifact_id, percentage, description)
