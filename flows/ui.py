"""Serve the MLflow and Prefect pages of a workspace on loopback, until Ctrl-C or SIGTERM.

clozeworks ui workspaces/demo
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NamedTuple

from flows.servers.local_server import URL_VARIABLE, refusal_in
from flows.servers.mlflow_database import DATABASE_NAME, artifacts_uri, set_up_mlflow
from flows.servers.moved_workspace import relocate
from flows.servers.prefect_database import database_url
from flows.servers.private_files import open_private
from flows.tracking.mlflow_pages import newest_experiment, runs_page
from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import LIFELINE_VARIABLE
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of

LOOPBACK = "127.0.0.1"
MLFLOW_PORT, PREFECT_PORT = 5000, 4200
"""Default ports of both projects."""
MLFLOW_DATABASE, PREFECT_HOME = DATABASE_NAME, "prefect"
LOG_NAME = "ui-{name}.log"
STARTUP_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 10.0
EXIT_FAILED = 1

_POLL_SECONDS = 0.2
_HTTP_TIMEOUT_SECONDS = 5.0
# MLflow's own command would survive a SIGKILL of this one; this wrapper follows the lifeline.
_MLFLOW_COMMAND = (
    "import os; os.umask(0o077); from pipelines.commands.lifeline import follow_lifeline; follow_lifeline(); "
    "from mlflow.cli import cli; cli()"
)


class Page(NamedTuple):
    """A server that is starting: its name, its address for the user, and the address that shows that it answers."""

    name: str
    address: str
    health_url: str
    log_path: str
    process: subprocess.Popen[bytes]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks ui",
        description="Show a workspace's runs, models and flows in a browser, until Ctrl-C.",
        epilog="example: clozeworks ui workspaces/demo",
    )
    parser.add_argument("workspace", help="directory of a run, such as workspaces/demo")
    free = "0, or a port that is in use, takes any free one"
    parser.add_argument("--mlflow-port", type=int, default=MLFLOW_PORT, help=f"default {MLFLOW_PORT}; {free}")
    parser.add_argument("--prefect-port", type=int, default=PREFECT_PORT, help=f"default {PREFECT_PORT}; {free}")
    parser.add_argument("--no-browser", action="store_true", help="only print the addresses")
    parsed = parser.parse_args(arguments)
    try:
        with _sigterm_as_interrupt():
            return show(parsed.workspace, parsed.mlflow_port, parsed.prefect_port, not parsed.no_browser)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


def show(workspace: str, mlflow_port: int, prefect_port: int, with_browser: bool) -> int:
    """Start the servers for which the workspace has data, and wait until one ends or an interrupt arrives.

    Returns:
        EXIT_FAILED if a server ended by itself.

    Raises:
        InputError: there is nothing to show, or a server does not start.
        KeyboardInterrupt: on Ctrl-C, after both servers have ended.
    """
    directory = _directory_with_pages(workspace)
    with ExitStack() as stack:
        pages: list[Page] = []
        stack.callback(_stop, pages)
        if os.path.isdir(os.path.join(directory, PREFECT_HOME)):
            pages.append(_start_prefect(directory, prefect_port))
        if os.path.exists(os.path.join(directory, MLFLOW_DATABASE)):
            # Its database is checked in this process, while Prefect's server starts.
            pages.insert(0, _start_mlflow(directory, mlflow_port))
        for page in pages:
            _wait_until_answering(page)
            print(f"{page.name:<8} {page.address}", flush=True)
        print("Ctrl-C stops them", flush=True)
        if with_browser and sys.stdout.isatty():
            _open_browser([page.address for page in pages])
        while True:
            for page in pages:
                if page.process.poll() is not None:
                    print(f"error: {page.name} ended; see {page.log_path}", file=sys.stderr)
                    return EXIT_FAILED
            time.sleep(_POLL_SECONDS)


def _directory_with_pages(workspace: str) -> str:
    if not storage.is_local(workspace):
        raise InputError(
            f"{workspace}: an object store holds no databases of MLflow and Prefect to serve; open the tracking server "
            "that tracking.mlflow_tracking_uri names, and Prefect's server at PREFECT_API_URL"
        )
    if not os.path.isdir(storage.local_path(workspace)):
        raise InputError(f"{workspace}: no such local directory; give the workspace of a run, such as workspaces/demo")
    directory = storage.local_path(workspace)
    if not any(os.path.exists(os.path.join(directory, name)) for name in (MLFLOW_DATABASE, PREFECT_HOME)):
        raise InputError(
            f"{workspace}: contains neither {MLFLOW_DATABASE} nor {PREFECT_HOME}/; run clozeworks run on it first, or "
            "open the servers that tracking.mlflow_tracking_uri and PREFECT_API_URL name"
        )
    return directory


def _start_mlflow(directory: str, port: int) -> Page:
    """Start MLflow with one worker and no job runner: it only shows runs and models."""
    store = set_up_mlflow(directory)
    relocate(directory)
    with _listener(port, "MLflow") as listener:
        port = listener.getsockname()[1]
    # MLflow cannot inherit a socket: if another process takes the port now, the server ends with an error.
    options = {
        "--backend-store-uri": store,
        "--artifacts-destination": artifacts_uri(directory),
        "--host": LOOPBACK,
        "--port": str(port),
        # Without these, MLflow also accepts other host names, which a foreign page may have rebound to loopback.
        "--allowed-hosts": f"{LOOPBACK}:{port},localhost:{port}",
        "--workers": "1",
    }
    command = [sys.executable, "-c", _MLFLOW_COMMAND, "server", *(part for pair in options.items() for part in pair)]
    url = f"http://{LOOPBACK}:{port}"
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = runs_page(url, newest_experiment(os.path.join(directory, MLFLOW_DATABASE)))
    return _start("MLflow", address, f"{url}/health", directory, command, environment)


def _start_prefect(directory: str, port: int) -> Page:
    """Start the server of flows/servers/local_server.py with its pages, on a socket that already listens."""
    with _listener(port, "Prefect") as listener:
        url, home = f"http://{LOOPBACK}:{listener.getsockname()[1]}", os.path.join(directory, PREFECT_HOME)
        environment = {
            "PREFECT_HOME": home,
            URL_VARIABLE: database_url(home),
            "PREFECT_UI_ENABLED": "1",
            "PREFECT_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # As `prefect server start --no-services`: schedulers and other services would act on the runs shown.
            "PREFECT__SERVER_WEBSERVER_ONLY": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        command = [sys.executable, "-m", "flows.servers.local_server", str(listener.fileno())]
        return _start("Prefect", url, f"{url}/api/health", directory, command, environment, (listener.fileno(),))


def _start(
    name: str,
    address: str,
    health_url: str,
    directory: str,
    command: list[str],
    environment: Mapping[str, str],
    descriptors: tuple[int, ...] = (),
) -> Page:
    # Variables of the user's own server would redirect the pages to it.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    log_path = os.path.join(directory, LOG_NAME.format(name=name.lower()))
    with open_private(log_path, "wb") as log:
        process = subprocess.Popen(  # noqa: S603  # no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
            env={**inherited, "DO_NOT_TRACK": "1", **environment, LIFELINE_VARIABLE: str(os.getpid())},
            # Ctrl-C in a terminal reaches the complete foreground group; only this process must end the server.
            start_new_session=True,
        )
    return Page(name, address, health_url, log_path, process)


def _listener(port: int, name: str) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError:
        listener = socket.create_server((LOOPBACK, 0))
        print(f"{name}: port {port} is in use, taking {listener.getsockname()[1]}", flush=True)
        return listener


def _wait_until_answering(page: Page) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT_SECONDS
    while not _answers(page.health_url):
        if page.process.poll() is not None:
            raise InputError(
                refusal_in(page.log_path)
                or f"{page.log_path}: {page.name}'s server ended with code {page.process.returncode}; see this log"
            )
        if time.monotonic() > deadline:
            raise InputError(
                f"{page.log_path}: {page.name}'s server did not answer within {STARTUP_TIMEOUT_SECONDS:.0f} s; "
                "see this log"
            )
        time.sleep(_POLL_SECONDS)


def _answers(url: str) -> bool:
    try:
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_SECONDS):  # noqa: S310  # our own address
            pass
    except OSError:
        return False
    return True


def _open_browser(urls: list[str]) -> None:
    """Open the pages, best effort; without a display Python would start a text browser in the terminal."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    with suppress(webbrowser.Error, OSError):
        for url in urls:
            webbrowser.open(url)


def _stop(pages: list[Page]) -> None:
    """End every process group: SIGTERM to all at once, then SIGKILL to the remaining processes."""
    try:
        for page in pages:
            _signal_group(page, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while any(_group_lives(page) for page in pages) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 4)
    finally:
        for page in pages:
            _signal_group(page, signal.SIGKILL)
            page.process.wait()


def _group_lives(page: Page) -> bool:
    page.process.poll()  # reaps the leader, which would otherwise keep the group alive as a zombie
    return _signal_group(page, 0)


def _signal_group(page: Page, number: int) -> bool:
    try:
        os.killpg(page.process.pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
