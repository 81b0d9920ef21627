"""How far a stage is, as a progress bar on Prefect's page: read off the lines that the stage prints."""

from __future__ import annotations

import logging
import re
import time
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

INTERVAL_SECONDS = 5.0
"""An update is one request, made between two lines of the stage's output."""

# `pretraining: step 40/2,200: loss ...`, `... epoch 1/4: ...` and `documents: 5 of 16 shards after 4 s`
_COUNTS = re.compile(r"(?:\b(?:step|epoch) ([\d,]+)/([\d,]+):)|(?:: ([\d,]+) of ([\d,]+) \w+)")


def percentage_in(line: str) -> float | None:
    """How far the stage says that it is, 0 to 100; None where the line does not tell."""
    found = _COUNTS.search(line)
    if found is None:
        return None
    done, total = (int(text.replace(",", "")) for text in found.groups() if text is not None)
    return 100.0 * min(done, total) / total if total else None


def artifact_key(*parts: str) -> str:
    """A name for an artifact as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class StageProgress:
    """The progress bar of one stage of one run; a server that does not answer costs the bar, never the stage."""

    def __init__(self, run_name: str, stage: str, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]):
        self._key = artifact_key(run_name, stage, "progress")
        self._logger = logger
        self._artifact_id: UUID | None = None
        self._next_update = 0.0

    def observe(self, line: str) -> None:
        """Show what a line tells, at most once in `INTERVAL_SECONDS`."""
        percentage = percentage_in(line)
        if percentage is not None and time.monotonic() >= self._next_update:
            self._show(percentage, line)

    def complete(self) -> None:
        """Show that nothing is left to do."""
        self._show(100.0, "complete")

    def _show(self, percentage: float, description: str) -> None:
        self._next_update = time.monotonic() + INTERVAL_SECONDS
        try:
            if self._artifact_id is None:
                # Outside an event loop it returns the id itself.
                self._artifact_id = cast(UUID, create_progress_artifact(percentage, self._key, description))
            else:
                update_progress_artifact(self._artifact_id, percentage, description)
        except (httpx.HTTPError, PrefectException) as error:
            self._logger.warning("The progress bar was not updated: %s", error)
