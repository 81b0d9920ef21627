"""A worker process of the local Beam runner: Beam's own, but quiet, and ended with the run that started it."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import sdk_worker, sdk_worker_main, statesampler

from pipelines.commands.lifeline import follow_lifeline
from pipelines.jobs.runner import quiet_logs


def main() -> None:
    follow_lifeline()
    # Ctrl-C reaches every process of a terminal; the run that started this worker ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_logs()
    sdk_worker.SdkHarness._execute = _execute_quietly
    # Silence a warning about a staging directory that only containers have.
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    sdk_worker_main.main(sys.argv[:1])


def _execute_quietly(harness: Any, task: Callable[[], Any], request: Any) -> None:
    """Beam's `SdkHarness._execute`, without printing the traceback that its response holds."""
    with statesampler.instruction_id(request.instruction_id):
        try:
            response = task()
        except BaseException:  # noqa: BLE001 - the response carries it to the run, which raises it
            response = beam_fn_api_pb2.InstructionResponse(
                instruction_id=request.instruction_id, error=traceback.format_exc()
            )
        harness._responses.put(response)


if __name__ == "__main__":
    main()
