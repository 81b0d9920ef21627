"""A headless Chromium driven through its DevTools protocol over a web socket on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGES = "chromium and fonts-dejavu-core (Debian, Ubuntu)"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_ANSWER_SECONDS = 120.0
_LISTENING = re.compile(rb"DevTools listening on (ws://127\.0\.0\.1:\S+)")


def find_chromium() -> str | None:
    """The browser's program: CLOZEWORKS_CHROMIUM if set, else the first one found by name."""
    named = os.environ.get("CLOZEWORKS_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab: loads a URL, evaluates JavaScript, and records every request and every error."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._number = 0
        self._session: str | None = None
        self._loaded = False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def open(self, url: str, width: int, height: int = 800, scheme: str = "light") -> None:
        """Load a URL at this window size and colour scheme; ends when the page has loaded."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self.send("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> str:
        """The complete page as PNG, in base64."""
        return str(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])

    def _receive(self) -> Any:
        message = json.loads(self._socket.recv(timeout=_ANSWER_SECONDS))
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message


@contextmanager
def browser_page(program: str) -> Iterator[Page]:
    """Start the browser with an empty profile and hand out a tab; all its processes end with the block."""
    profile = tempfile.mkdtemp(prefix="chromium-profile-")
    log_path = os.path.join(profile, "stderr")
    with open(log_path, "wb") as log:
        browser = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        with connect(_address(browser, log_path), max_size=None, proxy=None, ping_interval=None) as socket:
            yield Page(socket)
    finally:
        _end(browser)
        shutil.rmtree(profile, ignore_errors=True)


def _address(browser: subprocess.Popen[bytes], log_path: str) -> str:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        with open(log_path, "rb") as log:
            text = log.read()
        if found := _LISTENING.search(text):
            return found[1].decode()
        running = browser.poll() is None and time.monotonic() < deadline
        assert running, f"the browser does not listen: {text[-500:]!r}"
        time.sleep(0.05)


def _end(browser: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(browser.pid, number)
        except ProcessLookupError:
            break
        try:
            browser.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
    browser.wait()
