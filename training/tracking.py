"""Metrics of a run: always to metrics.jsonl in the stage's directory and, where a run is given, to MLflow as well."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from pipelines import storage

if TYPE_CHECKING:
    from mlflow.entities import Metric

METRICS_NAME = "metrics.jsonl"
_FLUSH_SECONDS = 3.0
_LAST_SEND_SECONDS = 60.0
_BATCH_METRICS = 1_000
"""What MLflow takes in one call."""


class Tracker:
    """Writes metrics by step; on other ranks than 0 it does nothing. Tracking never ends a training run.

    MLflow takes part when MLFLOW_RUN_ID and MLFLOW_TRACKING_URI are set. A thread imports it (seconds) and sends
    batches, so training waits for neither.
    """

    def __init__(
        self,
        directory: str,
        is_first: bool,
        prefix: str = "",
        resumed_step: int = -1,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Open `directory`/metrics.jsonl for appending, without what a killed run wrote after its last checkpoint.

        Args:
            directory: of the stage.
            is_first: on other ranks nothing is written.
            prefix: put before the names that MLflow gets.
            resumed_step: last step whose line is kept; -1 begins a new file.
            parameters: what MLflow shall know of the run as a whole.
        """
        self._stream = None
        self._sender: _MlflowSender | None = None
        if not is_first:
            return
        path = storage.join(directory, METRICS_NAME)
        os.makedirs(directory, exist_ok=True)
        _drop_after(path, resumed_step)
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        if os.environ.get("MLFLOW_RUN_ID") and os.environ.get("MLFLOW_TRACKING_URI"):
            self._sender = _MlflowSender(os.environ["MLFLOW_RUN_ID"], prefix, parameters or {})

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the values of one step."""
        if self._stream is None:
            return
        self._stream.write(json.dumps({"step": step, **metrics}) + "\n")
        self._stream.flush()
        if self._sender is not None:
            self._sender.send(step, metrics)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sender is not None:
            self._sender.close()
        if self._stream is not None:
            self._stream.close()


class _MlflowSender:
    """A thread that hands metrics to MLflow; after its first failure it says so and drops the rest."""

    def __init__(self, run_id: str, prefix: str, parameters: Mapping[str, str]) -> None:
        self._run_id, self._prefix, self._parameters = run_id, prefix, parameters
        self._waiting: queue.Queue[tuple[int, int, dict[str, float]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def send(self, step: int, metrics: dict[str, float]) -> None:
        self._waiting.put((step, int(time.time() * 1000), metrics))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(_LAST_SEND_SECONDS)
        if self._thread.is_alive():
            print(f"tracking: MLflow did not answer in {_LAST_SEND_SECONDS:.0f} s; see {METRICS_NAME}", flush=True)

    def _work(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient

            client = MlflowClient()
            for name, value in self._parameters.items():
                client.log_param(self._run_id, self._prefix + name, value)
            is_open = True
            while is_open:
                records, is_open = self._gather()
                metrics: list[Metric] = [
                    Metric(self._prefix + name, value, timestamp_ms, step)
                    for step, timestamp_ms, values in records
                    for name, value in values.items()
                ]
                for start in range(0, len(metrics), _BATCH_METRICS):
                    client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH_METRICS])
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"tracking: MLflow failed ({first_line}); metrics go to {METRICS_NAME} only", flush=True)

    def _gather(self) -> tuple[list[tuple[int, int, dict[str, float]]], bool]:
        """What arrives within a few seconds, and whether more may follow."""
        records: list[tuple[int, int, dict[str, float]]] = []
        deadline = time.monotonic() + _FLUSH_SECONDS
        while (left_seconds := deadline - time.monotonic()) > 0:
            try:
                record = self._waiting.get(timeout=left_seconds)
            except queue.Empty:
                break
            if record is None:
                return records, False
            records.append(record)
        return records, True


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
