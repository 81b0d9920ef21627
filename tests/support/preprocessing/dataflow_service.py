"""A stand-in of Google Cloud: Dataflow's jobs and messages and a bucket of Cloud Storage, over HTTP on loopback.

It answers Beam's own client in the form of the service's REST interface (v1b3), and runs nothing: a test gives the
states and messages of the job in order.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

JOB_ID = "2026-11-26_12_00_00-1234567890123456789"
MESSAGES_PER_PAGE = 2


class Moment(NamedTuple):
    """What the service says of the job from one request for its state on, until the next.

    state: such as JOB_STATE_RUNNING.
    messages: (importance, text) that appear at this moment.
    before: called when the state is requested.
    status: HTTP status of the answer; another than 200 shows no state.
    """

    state: str
    messages: tuple[tuple[str, str], ...] = ()
    before: Callable[[], None] = lambda: None
    status: int = 200


class DataflowService:
    """One project with one job. A context manager; `address` is where it listens.

    Args:
        moments: of the job, in order; the last one stays.
        refuse: HTTP status and message that the submission gets in place of a job.
        running: the client request id of a job of this name that runs already.
    """

    def __init__(self, moments: list[Moment], refuse: tuple[int, str] | None = None, running: str | None = None):
        self.moments = moments
        self.refuse = refuse
        self.running = running
        self.objects: dict[str, bytes] = {}
        self.submitted: dict[str, Any] | None = None
        self.requested_states: list[int] = []
        self.next_moment = 0
        self.messages: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        service = self

        class Handler(_Handler):
            owner = service

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Beam takes HTTP only where the address says localhost.
        self.address = f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> DataflowService:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def job(self, state: str) -> dict[str, Any]:
        assert self.submitted is not None
        kept = {key: self.submitted[key] for key in ("name", "type", "clientRequestId") if key in self.submitted}
        request = kept.get("clientRequestId", "") if self.running is None else self.running
        return {**kept, "id": JOB_ID, "projectId": "example", "currentState": state, "clientRequestId": request}

    def advance(self) -> Moment:
        """The present moment; its messages appear."""
        with self.lock:
            moment = self.moments[min(self.next_moment, len(self.moments) - 1)]
            is_new = self.next_moment < len(self.moments)
            self.next_moment += 1
            if is_new:
                for importance, text in moment.messages:
                    number = len(self.messages)
                    stamp = f"2026-11-26T12:00:{number // 2:02d}.5Z"
                    self.messages.append(
                        {"id": f"m{number}", "time": stamp, "messageText": text, "messageImportance": importance}
                    )
        moment.before()
        return moment


class _Handler(BaseHTTPRequestHandler):
    owner: DataflowService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        parts = address.path.split("/")
        if address.path.startswith("/storage/"):
            self._bucket_or_object(parts)
        elif parts[-1] == "messages":
            self._messages(query)
        else:
            moment = self.owner.advance()
            if moment.status == 200:
                self._answer(self.owner.job(moment.state))
            else:
                self._refuse(moment.status, "The service is currently unavailable.")

    def do_POST(self) -> None:
        body = self._body()
        address = urlsplit(self.path)
        if address.path.startswith("/upload/"):
            name = json.loads(body)["name"] if body else parse_qs(address.query)["name"][0]
            self._answer({}, {"Location": f"{self.owner.address}/put/{name}"})
        elif self.owner.refuse is not None:
            self._refuse(*self.owner.refuse)
        else:
            self.owner.submitted = json.loads(body)
            self._answer(self.owner.job("JOB_STATE_PENDING"))

    def do_PUT(self) -> None:
        body = self._body()
        if self.path.startswith("/put/"):
            name = unquote(urlsplit(self.path).path.removeprefix("/put/"))
            self.owner.objects[name] = self.owner.objects.get(name, b"") + body
            content = self.owner.objects[name]
            checksum = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
            self._answer({"name": name, "bucket": "example", "size": str(len(content)), "crc32c": checksum})
        else:
            self.owner.requested_states.append(json.loads(body)["requestedState"])
            self._answer(self.owner.job("JOB_STATE_CANCELLING"))

    def _bucket_or_object(self, parts: list[str]) -> None:
        if "o" in parts:
            self._refuse(404, "No such object")
        else:
            self._answer({"kind": "storage#bucket", "id": parts[-1], "name": parts[-1]})

    def _messages(self, query: dict[str, str]) -> None:
        # A client sends the time in one of several forms; the first 21 characters are common to all.
        since = query.get("startTime", "")[:21]
        found = [message for message in self.owner.messages if message["time"][:21] >= since]
        first = int(query.get("pageToken", "0"))
        page: dict[str, Any] = {"jobMessages": found[first : first + MESSAGES_PER_PAGE]}
        if first + MESSAGES_PER_PAGE < len(found):
            page["nextPageToken"] = str(first + MESSAGES_PER_PAGE)
        self._answer(page)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _refuse(self, status: int, message: str) -> None:
        self._answer({"error": {"code": status, "message": message, "status": "REFUSED"}}, status=status)

    def _answer(self, value: dict[str, Any], headers: dict[str, str] | None = None, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep requests off the test's output."""
