"""A server that is busy, as Prefect's is on SQLite: requests are repeated; a loopback server plays its answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from flows.deploy import MOST_RETRIES
from flows.deployments.deployment import _send
from flows.running.command import client_patience
from pipelines.contract.errors import InputError


class BusyServer:
    """Gives one status after the other; the last one is repeated. It names no pause, so that tests do not wait."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.num_requests = 0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status = stand_in.statuses[min(stand_in.num_requests, len(stand_in.statuses) - 1)]
                stand_in.num_requests += 1
                data = json.dumps({"id": "made"} if status == 201 else {"exception_message": "Unavailable"}).encode()
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def send(self, *statuses: int) -> str:
        """Deploy against these answers, with the patience of `clozeworks deploy`."""
        self.statuses, self.num_requests = list(statuses), 0
        settings = {
            PREFECT_API_URL: f"http://127.0.0.1:{self.server.server_address[1]}/api",
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
            **client_patience(MOST_RETRIES),
        }
        with temporary_settings(updates=settings), get_client(sync_client=True) as client:
            return _send(client, "flow/name", {"name": "name"})


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[BusyServer]:
    monkeypatch.delenv("PREFECT_CLIENT_MAX_RETRIES", raising=False)
    server = BusyServer()
    yield server
    server.close()


def test_a_busy_server_is_asked_until_it_answers(busy: BusyServer) -> None:
    assert busy.send(*[503] * MOST_RETRIES, 201) == "made"
    assert busy.num_requests == MOST_RETRIES + 1


def test_a_server_that_stays_busy_has_not_rejected_anything(busy: BusyServer) -> None:
    with pytest.raises(InputError, match="flow/name: not deployed, the server answered 503 to every attempt") as error:
        busy.send(503)
    assert "run the same command again" in str(error.value)
    assert busy.num_requests == MOST_RETRIES + 1


def test_a_rejected_deployment_is_sent_once(busy: BusyServer) -> None:
    with pytest.raises(InputError, match="flow/name: rejected by the server"):
        busy.send(409)
    assert busy.num_requests == 1


def test_a_number_of_retries_that_the_environment_sets_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "2")
    assert client_patience(MOST_RETRIES) == {}
