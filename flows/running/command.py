"""The command line that all flows share: check the recipe, find or start Prefect's server, run, shut down."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    temporary_settings,
)

from flows.console.narration import narrate_to_console
from flows.parameters.flow_arguments import REQUESTS, flow_parser
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.launch import StageError
from flows.servers.early_server import HOME_NAME, home_in_workspace
from flows.servers.local_server import answers, discard_begun, local_server
from flows.tracking.runs import Tracker
from pipelines.commands.recipe_arguments import recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import EXIT_FAILED, InputError, exit_code_of
from pipelines.contract.manifest import digest_of
from pipelines.staging.local_cache import local_directory

DRAIN_TIMEOUT_SECONDS = 5.0
MOST_RETRIES = 3
"""Attempts of one request to Prefect's server; their pauses add up to about 14 seconds."""


def run_as_command(flow: Any, argv: list[str] | None = None) -> int:
    """Run a flow on the recipe that the command line names.

    Returns the exit code: 0 complete, 1 a stage failed, 2 user error, 130 interrupted.
    """
    parser = flow_parser(flow.fn.__name__, (flow.fn.__doc__ or "").splitlines()[0])
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: _run(flow, arguments))


def _run(flow: Any, arguments: argparse.Namespace) -> int:
    request_type = REQUESTS[flow.fn.__name__]
    whole = WholeRecipe.check(recipe_from_arguments(arguments), request_type.needs_corpus)
    flags = {"rebuild": arguments.rebuild}
    if "continue_finished" in arguments:
        flags["continue_finished"] = arguments.continue_finished
    request = request_type(recipe=whole.recipe.path, overrides=whole.recipe.overrides, **flags)
    return run_flow(flow, request, whole)


def run_flow(flow: Any, request: Any, whole: WholeRecipe) -> int:
    """Run a flow with a Prefect server, one of its own unless the user has one, and show its events.

    Args:
        flow: to call.
        request: its parameter.
        whole: the recipe whose workspace has the server's database and the tracking store.

    Returns:
        0 if it is complete, 1 if a stage or a run failed.

    Raises:
        InputError: an input is not valid.
    """
    narrate_to_console()
    try:
        with _prefect(whole) as api_url:
            _call(flow, request, api_url)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except ServerGoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # At exit Prefect would send queued logs and events, and retry for minutes without a server.
        os._exit(EXIT_FAILED)
    return 0


def _call(flow: Any, request: Any, api_url: str) -> None:
    try:
        flow(request)
    except (httpx.HTTPError, PrefectException, RuntimeError) as error:
        if isinstance(error, StageError) or answers(api_url):
            raise
        raise ServerGoneError(_told_without_server(api_url, error)) from error


class ServerGoneError(RuntimeError):
    """Prefect's server no longer answers; the message is one line, or that of the stage that failed before."""


def _told_without_server(api_url: str, error: BaseException) -> str:
    """The failure of a stage, if there was one that could not be reported to Prefect; else that the server is gone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (StageError, InputError)):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return (
        f"{api_url}: Prefect's server no longer answers, so it has no final state of this run; "
        "completed stages are kept: start the server, and run the same command again"
    )


@contextmanager
def _prefect(whole: WholeRecipe) -> Iterator[str]:
    """Settings under which flows find a server: the user's own, else one that runs as long as this command.

    Yields the server's address.
    """
    # Prefect's own five tries take a minute for each of the calls that end a run.
    patience = client_patience(MOST_RETRIES)
    if api_url := PREFECT_API_URL.value():
        discard_begun()
        require_server(api_url)
        Tracker(whole)
        with temporary_settings(updates=patience):
            yield api_url
        return
    home = prefect_home(whole)
    with local_server(home) as server:
        # The server takes seconds to start, and so does MLflow: start them in parallel.
        Tracker(whole)
        server.wait_until_ready()
        settings: dict[Any, Any] = {
            PREFECT_HOME: home,
            PREFECT_API_URL: server.api_url,
            # Nothing here detects dead flows, and joining the heartbeat's thread costs each flow a second.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            **patience,
        }
        with temporary_settings(updates=settings):
            try:
                yield server.api_url
            finally:
                _send_what_waits()


def client_patience(most_retries: int) -> dict[Any, Any]:
    """Settings of Prefect's client: how often it repeats a request. The user's own value is kept."""
    return {} if PREFECT_CLIENT_MAX_RETRIES.name in os.environ else {PREFECT_CLIENT_MAX_RETRIES: most_retries}


def require_server(api_url: str) -> None:
    """Raise InputError unless a Prefect server answers at this address."""
    if not answers(api_url):
        raise InputError(
            f"PREFECT_API_URL = {api_url}: no Prefect server answers; start it with `prefect server start`, "
            "or unset the variable to use a private server"
        )


def _send_what_waits() -> None:
    """Send queued logs and events while the server still answers; at exit Prefect would retry for over a minute."""
    # On a slow machine it logs that some are still queued, which is expected here.
    logging.getLogger(EventsWorker.__name__).setLevel(logging.ERROR)
    APILogWorker.drain_all(timeout=DRAIN_TIMEOUT_SECONDS)
    EventsWorker.drain_all(timeout=DRAIN_TIMEOUT_SECONDS)


def prefect_home(whole: WholeRecipe) -> str:
    """Directory of a private server's database: in the workspace or, if that is remote, in the run's local directory;
    PREFECT_HOME overrides both."""
    if "PREFECT_HOME" in os.environ:
        return str(PREFECT_HOME.value())
    if whole.is_local:
        return home_in_workspace(whole.run.workspace)
    # One for each workspace: two runs on one machine must not share a database.
    return storage.join(local_directory(whole.run), HOME_NAME, digest_of(whole.run.workspace)[:16])
