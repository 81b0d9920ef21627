"""A proxy between clients and an S3 server that adds the faults of real stores and networks."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.support.object_store.s3_server import S3Server, client_environment

_BLOCK_BYTES = 1 << 16
_HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'


@dataclass
class Fault:
    """What happens to requests, until so many had it, or until `ends_at`, or until it is withdrawn."""

    kind: str
    """`status`, `slow`, `cut` in mid-object, `truncated` object, or `down`."""
    requests: int | None = None
    ends_at: float | None = None
    methods: tuple[str, ...] = ("GET", "PUT", "POST", "HEAD", "DELETE")
    status: int = 503
    code: str = "SlowDown"
    message: str = "Please reduce your request rate."
    seconds: float = 0.0
    path_part: str = ""

    def takes(self, method: str, path: str) -> bool:
        """Whether it applies to this request, which then counts."""
        is_over = self.requests == 0 or (self.ends_at is not None and time.monotonic() > self.ends_at)
        if is_over or method not in self.methods or self.path_part not in urllib.parse.unquote(path):
            return False
        if self.requests is not None:
            self.requests -= 1
        return True


class FaultProxy:
    """A running proxy; without faults it forwards every request."""

    def __init__(self, target: str):
        self.target = urllib.parse.urlsplit(target).netloc
        self.requests: list[tuple[str, str]] = []
        """Method and path of what arrived."""
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="fault proxy", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need to reach the server through this proxy."""
        return client_environment(self.endpoint)

    def add(self, kind: str, seconds: float | None = None, **fields: Any) -> Fault:
        """Begin a fault; of `slow`, `seconds` is the delay, of others how long it lasts.

        `add("status", requests=5)`: five times 503; `add("down", seconds=3.0)`: connections are closed for 3 s;
        `add("status", status=400, code="ExpiredToken")`: until it is withdrawn.
        """
        if kind == "slow":
            fields["seconds"] = seconds
        elif seconds is not None:
            fields["ends_at"] = time.monotonic() + seconds
        fault = Fault(kind, **fields)
        with self._guard:
            self._faults.append(fault)
        return fault

    def withdraw(self) -> None:
        """End all faults."""
        with self._guard:
            self._faults.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._guard:
            self.requests.append((method, path))
            return next((fault for fault in self._faults if fault.takes(method, path)), None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def forward(self) -> None:
            fault = proxy.fault_of(self.command, self.path)
            if fault is not None and fault.kind == "down":
                self._hang_up()
                return
            body = self._body()
            if fault is not None and fault.kind == "status":
                text = _ERROR.format(code=fault.code, message=fault.message).encode()
                self.send_response(fault.status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)
                return
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            connection = http.client.HTTPConnection(proxy.target, timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
                if body or self.command in ("PUT", "POST"):
                    headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body or None, headers)
                self._answer(connection.getresponse(), fault)
            except (ConnectionError, http.client.HTTPException):
                self._hang_up()
            finally:
                connection.close()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
            total = int(answer.headers.get("Content-Length", 0))
            is_object = self.command == "GET" and answer.status in (200, 206)
            kind = fault.kind if fault is not None and is_object else ""
            sent_bytes = total // 2 if kind in ("cut", "truncated") else total
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_HEADERS:
                    self.send_header(name, value)
            is_bare = self.command == "HEAD" or answer.status in (204, 304)
            chunked = "Content-Length" not in answer.headers and not is_bare
            data = answer.read() if chunked else b""
            length = len(data) if chunked else (sent_bytes if kind == "truncated" else total)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if is_bare:
                return
            self.wfile.write(data)
            left = 0 if chunked else sent_bytes
            while left and (block := answer.read(min(left, _BLOCK_BYTES))):
                self.wfile.write(block)
                left -= len(block)
            if kind == "cut":
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815 - names of http.server

    return Handler


@contextmanager
def fault_proxy(server: S3Server) -> Iterator[FaultProxy]:
    """Run a proxy until the block ends."""
    proxy = FaultProxy(server.endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def s3_proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the session's server; this process and those that it starts reach the server through it."""
    with fault_proxy(s3_server) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        yield proxy
