"""Downloads one file over HTTP; an interrupted transfer is retried from the first byte."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus

from pipelines.contract.errors import InputError

_ATTEMPTS = 5
_BLOCK_BYTES = 1 << 20
_PROGRESS_BYTES = 32 << 20
_TIMEOUT_SECONDS = 60.0


class _WorthAnotherTryError(Exception):
    """The transfer was interrupted, or the server requests a retry."""


_PASSING = (
    _WorthAnotherTryError,
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def download(url: str, path: str, say: Callable[[str], None], first_wait_seconds: float = 1.0) -> None:
    """Download `url` to the file `path`, overwriting it.

    A broken connection, a truncated body, HTTP 429 and 5xx are retried, after waits that double.

    Args:
        url: http:// or https://.
        path: local; its directory exists.
        say: prints lines about progress.
        first_wait_seconds: before the second attempt.

    Raises:
        InputError: the server refuses the file, or all attempts failed.
    """
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            wait_seconds = first_wait_seconds * 2 ** (attempt - 1)
            say(f"{problem}; attempt {attempt + 1} of {_ATTEMPTS} in {wait_seconds:g} s")
            time.sleep(wait_seconds)
        try:
            return _fetch(url, path, say)
        except _PASSING as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            problem = f"{url}: {' '.join(str(reason).split()) or type(reason).__name__}"
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error}); free space or choose another --output") from error
    raise InputError(f"{problem}; run the command again when the server is reachable")


def _fetch(url: str, path: str, say: Callable[[str], None]) -> None:
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)  # noqa: S310  # http(s) only: fetch.py
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _WorthAnotherTryError(f"HTTP {error.code} {error.reason}") from error
            raise InputError(f"{url}: HTTP {error.code} {error.reason}; check the address and --base-url") from error
    with response:
        _receive(response, path, say)


def _receive(response: http.client.HTTPResponse, path: str, say: Callable[[str], None]) -> None:
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None else None
    have = shown = 0
    with open(path, "wb") as stream:
        while block := response.read(_BLOCK_BYTES):
            stream.write(block)
            have += len(block)
            if have - shown >= _PROGRESS_BYTES:
                shown = have
                say(f"{have >> 20} of {total >> 20} MiB" if total else f"{have >> 20} MiB")
    # read() does not raise if the connection ends early.
    if total is not None and have < total:
        raise _WorthAnotherTryError(f"the connection ended after {have:,} of {total:,} bytes")
