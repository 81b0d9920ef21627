"""Sends the lines of metrics.jsonl to MLflow from a thread."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from training.tracking.patience import first_line
from training.tracking.sender import TIME_KEY, Feed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


_ROUND_SECONDS = 3.0


_LONGEST_PAUSE_SECONDS = 60.0


_PAUSE_AT_CLOSE_SECONDS = 1.0


_LAST_SEND_SECONDS = 120.0


_BATCH_METRICS = 1_000
"""MLflow's limit per call."""


_CHUNK_BYTES = 1 << 18


_SYSTEM_POINTS = 40_000
"""About ten hours at MLflow's default of ten seconds; older ones are dropped while it is unreachable."""


MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The sender retries by itself; MLflow's default of seven retries of two minutes would delay detection.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Point(NamedTuple):
    """One value of one curve, in MLflow's form."""

    name: str
    value: float
    timestamp_ms: int
    step: int


def points_of(lines: bytes, tokens: int, prefix: str, by_tokens: Collection[str] = ()) -> tuple[list[Point], int]:
    """Convert lines of metrics.jsonl to points.

    Args:
        lines: complete ones.
        tokens: tokens seen before these lines.
        prefix: prepended to the names.
        by_tokens: metrics that are also sent over tokens, as by_tokens/..., to compare runs with different batch
            sizes.

    Returns:
        The points, and the tokens seen after the last line. A line without a token count uses the previous one.
    """
    points: list[Point] = []
    for line in lines.splitlines():
        values = json.loads(line)
        step, timestamp_ms = values.pop("step"), values.pop(TIME_KEY)
        tokens = int(values.get("tokens", tokens))
        points += [Point(prefix + name, value, timestamp_ms, step) for name, value in values.items()]
        # MLflow's x axis is a 64-bit integer named step.
        points += [
            Point(f"by_tokens/{prefix}{name}", values[name], timestamp_ms, tokens)
            for name in by_tokens
            if name in values
        ]
    return points, tokens


class MlflowSender:
    """A thread that sends metrics.jsonl from its first line, as it grows.

    The file is the queue: nothing is lost while MLflow is unreachable, and memory holds only a part of it. MLflow keeps
    a point with the same time, step and value once; so whatever failed is sent again, and a resumed run sends what its
    killed predecessor could not.
    """

    waited_seconds = 0.0
    """Time that closing senders of this process have spent waiting for a slow server."""

    def __init__(self, feed: Feed, run_id: str) -> None:
        self.step = feed.step
        """Last logged step; system metrics are logged at this step."""
        self._run_id, self._prefix, self._path, self._by_tokens = run_id, feed.prefix, feed.path, feed.by_tokens
        self._parameters = {feed.prefix + name: value for name, value in feed.parameters.items()}
        self._offset_bytes, self._tokens = 0, 0
        self._samples: deque[Point] = deque(maxlen=_SYSTEM_POINTS)
        self._client: MlflowClient | None = None
        self._system: SystemMetricsMonitor | None = None
        self._next_sample = 0.0
        self._refusals: set[str] = set()
        self._closing, self._gave_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the remaining lines, within a time limit; metrics.jsonl is already closed."""
        self._closing.set()
        started = time.monotonic()
        self._thread.join(max(_LAST_SEND_SECONDS - MlflowSender.waited_seconds, _PAUSE_AT_CLOSE_SECONDS))
        if self._thread.is_alive():
            MlflowSender.waited_seconds += time.monotonic() - started
            self._gave_up.set()
            say(
                f"MLflow did not accept all metrics within {_LAST_SEND_SECONDS:.0f} s; {self._lines_left()} lines are "
                f"only in {self._path}"
            )

    def _lines_left(self) -> int:
        with open(self._path, "rb") as stream:
            stream.seek(self._offset_bytes)
            return sum(1 for _ in stream)

    def _work(self) -> None:
        for name, value in MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        pause_seconds, next_try, is_away = 0.0, 0.0, False
        while not self._gave_up.is_set():
            try:
                # Read before sending: once closing is set, nothing more is written, so this round sends the rest.
                is_last = self._closing.is_set()
                if is_last or time.monotonic() >= next_try:
                    self._send()
                    if is_away:
                        say("MLflow is back and has all metrics")
                    pause_seconds, is_away = 0.0, False
                    if is_last:
                        return
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training continues
                if not is_away:
                    say(f"MLflow is unreachable ({first_line(error)}); training continues, metrics are sent later")
                is_away = True
                pause_seconds = min(max(2 * pause_seconds, _ROUND_SECONDS), _LONGEST_PAUSE_SECONDS)
                next_try = time.monotonic() + pause_seconds
            if self._closing.wait(_ROUND_SECONDS) and is_away:
                self._gave_up.wait(_PAUSE_AT_CLOSE_SECONDS)
            self._sample_system()

    def _send(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if self._client is None:
            # This module reports failures once, so silence MLflow and its HTTP client. Importing MLflow sets its level.
            for name in ("mlflow", "alembic", "urllib3"):
                logging.getLogger(name).setLevel(logging.ERROR)
            # Explicit, because a URI that code of this process has set for MLflow globally would override the variable.
            self._client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
            self._system = self._system_monitor()
        for name in list(self._parameters):
            try:
                self._client.log_param(self._run_id, name, self._parameters[name])
            except MlflowException as error:
                self._tell_refusal(error)
            del self._parameters[name]
        while lines := self._next_lines():
            points, tokens = points_of(lines, self._tokens, self._prefix, self._by_tokens)
            self._log(points)
            self._offset_bytes, self._tokens = self._offset_bytes + len(lines), tokens
        self._log(list(self._samples))
        self._samples.clear()

    def _next_lines(self) -> bytes:
        with open(self._path, "rb") as stream:
            stream.seek(self._offset_bytes)
            piece = stream.read(_CHUNK_BYTES)
        return piece[: piece.rfind(b"\n") + 1]

    def _log(self, points: list[Point]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        for start in range(0, len(points), _BATCH_METRICS):
            batch = [Metric(*point) for point in points[start : start + _BATCH_METRICS]]
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except MlflowException as error:
                self._tell_refusal(error)

    def _tell_refusal(self, error: MlflowException) -> None:
        """Skip what MLflow rejects for good, such as a parameter with another value; raise every other error."""
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise error
        reason = first_line(error)
        if reason not in self._refusals:
            say(f"MLflow rejected some of the data ({reason})")
        self._refusals.add(reason)

    def _system_monitor(self) -> SystemMetricsMonitor | None:
        """MLflow's system metrics, without its thread, which ends for good at the first failed request."""
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            return SystemMetricsMonitor(self._run_id)  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - psutil is missing, or a driver does not respond
            say(f"system metrics are not logged ({first_line(error)})")
            return None

    def _sample_system(self) -> None:
        if self._system is None or time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + self._system.sampling_interval
        try:
            self._system.collect_metrics()  # type: ignore[no-untyped-call]
            values: dict[str, float] = self._system.aggregate_metrics()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - a failed probe must not end training
            say(f"system metrics are no longer logged ({first_line(error)})")
            self._system = None
            return
        for monitor in self._system.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]
        timestamp_ms = time.time_ns() // 1_000_000
        self._samples.extend(Point(f"system/{name}", value, timestamp_ms, self.step) for name, value in values.items())


def open_mlflow(feed: Feed) -> MlflowSender | None:
    """Open the sender to the run in `feed` or in MLFLOW_RUN_ID; None without a run or a tracking URI."""
    run_id = feed.run_id or os.environ.get("MLFLOW_RUN_ID")
    return MlflowSender(feed, run_id) if run_id and os.environ.get("MLFLOW_TRACKING_URI") else None


def say(line: str) -> None:
    """Print a line about tracking to the stage's output."""
    print(f"tracking: {line}", flush=True)
