"""What sends the metrics of a run to a tracking server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

TIME_KEY = "timestamp_ms"
"""In each line of metrics.jsonl, next to its step and its metrics."""


class Feed(NamedTuple):
    """What a sender is given.

    path: of metrics.jsonl, which grows by complete lines; it is the queue of what is to be sent. prefix: put before the
    names that the server gets. parameters: of the run as a whole. run_id: the run that gets them; None is the one that
    the environment names. step: the last one that the file has when the sender begins. by_tokens: metrics that are
    also sent over tokens.
    """

    path: str
    prefix: str
    parameters: Mapping[str, str]
    run_id: str | None
    step: int
    by_tokens: Collection[str] = ()


class Sender(Protocol):
    """Sends a feed from its first line on, as it grows, without holding the training up or ending it."""

    step: int
    """Last step that was logged."""

    def close(self) -> None:
        """Send what is left, within a limit; metrics.jsonl is closed already."""
