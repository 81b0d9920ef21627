"""Create Prefect artifacts without blocking the run: the server may be unreachable, or hang."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Callable
from typing import ParamSpec

import httpx
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL

from flows.console.narration import LOGGER_NAME
from flows.servers.local_server import answers

REPORT_SECONDS = 20.0
"""Time-out for the artifacts of one flow."""

ParametersT = ParamSpec("ParametersT")

_logger = logging.getLogger(LOGGER_NAME)


def told_to_prefect(tell: Callable[ParametersT, None]) -> Callable[ParametersT, None]:
    """Decorator: create artifacts in a separate thread, and continue without them if Prefect fails."""

    @functools.wraps(tell)
    def told(*arguments: ParametersT.args, **keywords: ParametersT.kwargs) -> None:
        api_url = PREFECT_API_URL.value()
        # Its client would retry for a minute; this check fails at once.
        if api_url and not answers(api_url):
            _logger.warning("Prefect's server at %s does not answer; this run has no artifacts there", api_url)
            return
        problems: list[Exception] = []

        def work() -> None:
            try:
                tell(*arguments, **keywords)
            except Exception as error:  # noqa: BLE001 - raised or logged by the thread that waits
                problems.append(error)

        # The context names the flow run that the artifacts belong to.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="artifacts", daemon=True)
        thread.start()
        thread.join(REPORT_SECONDS)
        if thread.is_alive():
            _logger.warning("Prefect's server did not accept the artifacts of this run within %.0f s", REPORT_SECONDS)
        elif problems and isinstance(problems[0], (httpx.HTTPError, PrefectException)):
            _logger.warning("Prefect's server did not accept the artifacts of this run (%s)", problems[0])
        elif problems:
            raise problems[0]

    return told
