"""Metrics of a run: written to metrics.jsonl in the stage's directory, and sent from there to tracking servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType

from pipelines.contract import storage
from pipelines.contract.errors import writing
from pipelines.contract.workspace import METRICS_NAME
from training.tracking.mlflow_sender import open_mlflow
from training.tracking.sender import TIME_KEY, Feed, Sender

SENDERS: tuple[Callable[[Feed], Sender | None], ...] = (open_mlflow,)
"""Open the sender to a kind of server, if the environment names one. A new kind needs one row and one module."""


class Tracker:
    """Writes metrics by step, on rank 0 only. Tracking errors never end a training run.

    MLflow is used if a run is given, or named by MLFLOW_RUN_ID, and MLFLOW_TRACKING_URI is set. A sender reads the file
    in a thread, so training never waits for a server, and an unreachable one receives the metrics later.
    """

    def __init__(
        self,
        directory: str,
        is_first: bool,
        prefix: str = "",
        resumed_step: int = -1,
        parameters: Mapping[str, str] | None = None,
        run_id: str | None = None,
        by_tokens: Collection[str] = (),
    ) -> None:
        """Open `directory`/metrics.jsonl for appending, and drop lines written after the last checkpoint.

        Args:
            directory: of the stage.
            is_first: whether this is rank 0; other ranks write nothing.
            prefix: prepended to the names sent to a server.
            resumed_step: last step whose line is kept; -1 starts a new file.
            parameters: of the run.
            run_id: the MLflow run, instead of the one that MLFLOW_RUN_ID names.
            by_tokens: metrics that a server gets over tokens as well.
        """
        self._stream = None
        self._senders: list[Sender] = []
        if not is_first:
            return
        path = storage.join(directory, METRICS_NAME)
        storage.make_directory(directory)
        _drop_after(path, resumed_step)
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        feed = Feed(path, prefix, parameters or {}, run_id, max(resumed_step, 0), by_tokens)
        self._senders = [sender for open_sender in SENDERS if (sender := open_sender(feed)) is not None]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the values of one step."""
        if self._stream is None:
            return
        line = json.dumps({"step": step, **metrics, TIME_KEY: time.time_ns() // 1_000_000}) + "\n"
        with writing(self._stream.name):
            self._stream.write(line)
            self._stream.flush()
        for sender in self._senders:
            sender.step = step

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        for sender in self._senders:
            sender.close()


def _drop_after(path: str, step: int) -> None:
    """Truncate the file after `step`, and drop an incomplete last line."""
    if storage.file_size_bytes(path) is None:
        return
    kept = []
    for line in storage.read_bytes(path).decode().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] <= step:
            kept.append(line + "\n")
    storage.write_bytes(path, "".join(kept).encode())
