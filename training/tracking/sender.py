"""Interface of the senders of a run's metrics to a tracking server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

TIME_KEY = "timestamp_ms"
"""Key of the time in each line of metrics.jsonl, next to its step and its metrics."""


class Feed(NamedTuple):
    """Input of a sender.

    path: of metrics.jsonl, which grows by complete lines and is the queue of the sender. prefix: prepended to the names
    sent to the server. parameters: of the run. run_id: the run to log to; None is the one named by the environment.
    step: the last one in the file when the sender starts. by_tokens: metrics that are also sent over tokens.
    """

    path: str
    prefix: str
    parameters: Mapping[str, str]
    run_id: str | None
    step: int
    by_tokens: Collection[str] = ()


class Sender(Protocol):
    """Sends a feed from its first line, as it grows, without delaying or ending the training."""

    step: int
    """Last logged step."""

    def close(self) -> None:
        """Send the remaining lines, within a time limit; metrics.jsonl is already closed."""
