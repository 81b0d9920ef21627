"""A private Prefect server on loopback for one command, for users without a server of their own.

Prefect can start such a server itself, but in our process group, where Ctrl-C ends it before the flow can report its
state, and only with the first flow, too late to overlap with other start-up work.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from flows.console.endings import ending_of
from flows.console.narration import LOGGER_NAME
from flows.servers.prefect_database import database_url, prune, set_up_prefect
from flows.servers.private_files import PRIVATE_UMASK, open_private
from pipelines.commands.lifeline import LIFELINE_VARIABLE, follow_lifeline
from pipelines.commands.process_start import collect_rarely
from pipelines.contract.errors import InputError, exit_code_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"
STARTUP_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 10.0
MOST_RESTARTS = 3
"""Maximum number of restarts of a server that has died."""
LOG_NAME = "server.log"
URL_VARIABLE = "PREFECT_API_DATABASE_CONNECTION_URL"
ALLOWED_HOSTS = (LOOPBACK, "localhost")
"""A foreign page whose name is rebound to loopback reaches the server, but with its own name as the host."""

_logger = logging.getLogger(LOGGER_NAME)
_home: ContextVar[str | None] = ContextVar("home", default=None)
_begun: dict[str, LocalServer] = {}
"""By home; started, but not asked for yet."""
_POLL_SECONDS = 0.1
_ERROR_PREFIX = "error: "
_HTTP_TIMEOUT_SECONDS = 5.0


class LocalServer:
    """A server process that may still be starting; its address is known at once.

    Once it has answered, it is watched: if it dies, it is restarted at the same address, so that a run of several days
    does not end with it. Its socket stays open here, so requests wait meanwhile instead of being refused.
    """

    def __init__(self, home: str):
        os.makedirs(home, exist_ok=True)
        self.log_path = os.path.join(home, LOG_NAME)
        self._home = home
        # The child inherits a socket that already listens: the port cannot be taken between choosing and binding it.
        self._listener = socket.create_server((LOOPBACK, 0))
        self.api_url = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}/api"
        self._lock = threading.Lock()
        self._is_stopping = False
        self._log_start_bytes = os.path.getsize(self.log_path) if os.path.exists(self.log_path) else 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open_private(self.log_path, "ab") as log:
            return subprocess.Popen(  # noqa: S603  # no shell
                [sys.executable, "-m", "flows.servers.local_server", str(self._listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._listener.fileno()],
                env=_server_environment(self._home),
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for the first answer, at most `STARTUP_TIMEOUT_SECONDS`.

        Raises:
            InputError: the server ended, or does not answer in time; the message names its log.
        """
        deadline = time.monotonic() + STARTUP_TIMEOUT_SECONDS
        while not answers(self.api_url):
            if self._process.poll() is not None:
                raise InputError(
                    self._refusal()
                    or (
                        f"{self.log_path}: Prefect's server ended with code {self._process.returncode}; "
                        "see this log, or set PREFECT_API_URL to a server of your own"
                    )
                )
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.log_path}: Prefect's server did not answer within {STARTUP_TIMEOUT_SECONDS:.0f} s; "
                    "see this log, or set PREFECT_API_URL to a server of your own"
                )
            time.sleep(_POLL_SECONDS)
        threading.Thread(target=self._keep, name="prefect-server", daemon=True).start()

    def _keep(self) -> None:
        """Restart the server when it has died, at most `MOST_RESTARTS` times; then its address refuses connections."""
        for restart in range(MOST_RESTARTS + 1):
            returncode = self._process.wait()
            with self._lock:
                if self._is_stopping:
                    return
                ended = f"Prefect's server {ending_of(returncode)} (log: {self.log_path})"
                if restart == MOST_RESTARTS:
                    self._listener.close()
                    _logger.error("%s; it has died too often and is not restarted", ended)
                    return
                _logger.warning("%s; it is restarted, the run is not affected", ended)
                self._process = self._start()

    def _refusal(self) -> str | None:
        """The error line of the server's process, if it refused to start."""
        return refusal_in(self.log_path, self._log_start_bytes)

    def stop(self) -> None:
        with self._lock:
            self._is_stopping = True
            self._listener.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def begin(home: str) -> None:
    """Start the server that `local_server` will be asked for; it ends with this process in any case."""
    _begun[home] = LocalServer(home)


def discard_begun() -> None:
    """Stop what `begin` has started and nobody has asked for."""
    while _begun:
        _begun.popitem()[1].stop()


@contextmanager
def local_server(home: str) -> Iterator[LocalServer]:
    """Start a server with its database under `home`, and stop it at the end of the block."""
    server = _begun.pop(home, None) or LocalServer(home)
    token = _home.set(home)
    try:
        yield server
    finally:
        _home.reset(token)
        server.stop()


def private_home() -> str | None:
    """Directory of the private server's database; None if the user's own server is used."""
    return _home.get()


def answers(api_url: str) -> bool:
    """Does a Prefect server answer at this address? One that requires a password does."""
    if not api_url.startswith(("http://", "https://")):
        return False
    try:
        with (
            suppress(urllib.error.HTTPError),
            urllib.request.urlopen(f"{api_url}/health", timeout=_HTTP_TIMEOUT_SECONDS),  # noqa: S310  # http(s) only
        ):
            pass
    except OSError:
        return False
    return True


def refusal_in(log_path: str, start_bytes: int = 0) -> str | None:
    """The last line of a server's log that names the user error which ended it."""
    with open(log_path, "rb") as log:
        log.seek(start_bytes)
        lines = log.read().decode(errors="replace").splitlines()
    refusals = [line.removeprefix(_ERROR_PREFIX) for line in lines if line.startswith(_ERROR_PREFIX)]
    return refusals[-1] if refusals else None


def _server_environment(home: str) -> dict[str, str]:
    # `set_up_prefect` has brought a database of ours up to date; looking again takes over a second.
    is_ours = os.environ.get(URL_VARIABLE, database_url(home)) == database_url(home)
    return {
        **({"PREFECT_API_DATABASE_MIGRATE_ON_START": "false"} if is_ours else {}),
        URL_VARIABLE: database_url(home),
        **os.environ,
        "PREFECT_HOME": home,
        "PREFECT_UI_ENABLED": "0",
        # As SubprocessASGIServer of prefect 3.8.8: no schedulers and other services that only deployments need.
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        # No page in the user's browser needs access; Prefect's default allows every origin.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{LOOPBACK}",
        # Block types are for forms on the page; registering them took 1 of 7 seconds on a new database.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        LIFELINE_VARIABLE: str(os.getpid()),
    }


def main(descriptor: int) -> None:
    collect_rarely()
    follow_lifeline()
    os.umask(PRIVATE_UMASK)
    home = os.environ["PREFECT_HOME"]
    if os.environ[URL_VARIABLE] == database_url(home):
        set_up_prefect(home)
        _prune(home)
    # Takes seconds to import; the parent does not wait for it.
    import uvicorn

    config = uvicorn.Config(application, factory=True, log_level="error", lifespan="on")
    with socket.socket(fileno=descriptor) as listener:
        uvicorn.Server(config).run(sockets=[listener])


def application() -> ASGIApp:
    """Prefect's application, for requests that name this machine as their host."""
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(create_app(), allowed_hosts=ALLOWED_HOSTS, www_redirect=False)


def _prune(home: str) -> None:
    """Prune the database, best effort: if another server of this workspace is using it, the next start prunes it."""
    # Every flow imports this module, and SQLAlchemy takes long.
    from sqlalchemy.exc import SQLAlchemyError

    try:
        removed = prune(home)
    except (SQLAlchemyError, sqlite3.Error) as error:
        print(f"old flow runs were not removed: {error}", flush=True)
    else:
        if removed:
            print(f"removed {removed} old flow runs", flush=True)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(lambda: main(int(sys.argv[1]))))
