"""What a run tells Prefect about its results must not hold the run up: a server may be gone, or hang."""

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
"""What Prefect's server gets to take the artifacts of one flow."""

ParametersT = ParamSpec("ParametersT")

_logger = logging.getLogger(LOGGER_NAME)


def told_to_prefect(tell: Callable[ParametersT, None]) -> Callable[ParametersT, None]:
    """Have a function that creates artifacts run in a thread of its own, and go without them where Prefect fails."""

    @functools.wraps(tell)
    def told(*arguments: ParametersT.args, **keywords: ParametersT.kwargs) -> None:
        api_url = PREFECT_API_URL.value()
        # Its client tries again for a minute what this finds out at once.
        if api_url and not answers(api_url):
            _logger.warning("Prefect's server at %s does not answer; artifacts of this run are left out", api_url)
            return
        problems: list[Exception] = []

        def work() -> None:
            try:
                tell(*arguments, **keywords)
            except Exception as error:  # noqa: BLE001 - raised or said by the thread that waits
                problems.append(error)

        # The context names the flow run that the artifacts belong to.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="artifacts", daemon=True)
        thread.start()
        thread.join(REPORT_SECONDS)
        if thread.is_alive():
            _logger.warning("Prefect's server did not take the artifacts of this run within %.0f s", REPORT_SECONDS)
        elif problems and isinstance(problems[0], (httpx.HTTPError, PrefectException)):
            _logger.warning("Prefect's server did not take the artifacts of this run (%s)", problems[0])
        elif problems:
            raise problems[0]

    return told
