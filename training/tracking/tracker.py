"""Metrics of a run: always to metrics.jsonl in the stage's directory and, where a run is given, to MLflow as well."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pipelines.contract import storage
from pipelines.contract.errors import writing
from pipelines.contract.workspace import METRICS_NAME
from training.tracking.mlflow_sender import TIME_KEY, MlflowSender

if TYPE_CHECKING:
    pass


class Tracker:
    """Writes metrics by step; on other ranks than 0 it does nothing. Tracking never ends a training run.

    MLflow takes part when a run is given, or named by MLFLOW_RUN_ID, and MLFLOW_TRACKING_URI is set. A thread imports
    it (seconds) and sends what the file has, so training waits for neither, and a server that was away gets later what
    it missed.
    """

    def __init__(
        self,
        directory: str,
        is_first: bool,
        prefix: str = "",
        resumed_step: int = -1,
        parameters: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Open `directory`/metrics.jsonl for appending, without what a killed run wrote after its last checkpoint.

        Args:
            directory: of the stage.
            is_first: on other ranks nothing is written.
            prefix: put before the names that MLflow gets.
            resumed_step: last step whose line is kept; -1 begins a new file.
            parameters: what MLflow shall know of the run as a whole.
            run_id: the MLflow run, instead of the one that MLFLOW_RUN_ID names.
        """
        self._stream = None
        self._sender: MlflowSender | None = None
        if not is_first:
            return
        path = storage.join(directory, METRICS_NAME)
        storage.make_directory(directory)
        _drop_after(path, resumed_step)
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        run_id = run_id or os.environ.get("MLFLOW_RUN_ID")
        if run_id and os.environ.get("MLFLOW_TRACKING_URI"):
            self._sender = MlflowSender(run_id, prefix, parameters or {}, path)
            self._sender.step = max(resumed_step, 0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the values of one step."""
        if self._stream is None:
            return
        line = json.dumps({"step": step, **metrics, TIME_KEY: time.time_ns() // 1_000_000}) + "\n"
        with writing(self._stream.name):
            self._stream.write(line)
            self._stream.flush()
        if self._sender is not None:
            self._sender.step = step

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._sender is not None:
            self._sender.close()


def _drop_after(path: str, step: int) -> None:
    """Cut off lines of later steps, and a half-written last line."""
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
