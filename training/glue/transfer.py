"""One file over HTTP: what has arrived stays in `<path>.part`, and a broken transfer goes on from there."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus

from pipelines.contract.errors import InputError

PART_SUFFIX = ".part"

_ATTEMPTS = 5
_BLOCK_BYTES = 1 << 20
_PROGRESS_BYTES = 32 << 20
_TIMEOUT_SECONDS = 60.0


class _WorthAnotherTryError(Exception):
    """The transfer broke off, or the server asks for patience."""


_PASSING = (
    _WorthAnotherTryError,
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def download_part(url: str, part: str, say: Callable[[str], None], first_wait_seconds: float = 1.0) -> bool:
    """Fetch `url` into the file `part`, from where an earlier call left it.

    A broken connection, a body that ends early, HTTP 429 and 5xx are tried again, after waits that double.

    Args:
        url: http:// or https://.
        part: local path; its directory exists.
        say: gets lines about progress.
        first_wait_seconds: before the second attempt.

    Returns:
        Whether bytes of an earlier attempt or call are part of the file.

    Raises:
        InputError: the server refuses the file, or all attempts failed; `part` keeps what has arrived.
    """
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            wait_seconds = first_wait_seconds * 2 ** (attempt - 1)
            say(f"{problem}; attempt {attempt + 1} of {_ATTEMPTS} in {wait_seconds:g} s")
            time.sleep(wait_seconds)
        try:
            return _continue(url, part, say)
        except _PASSING as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            problem = f"{url}: {' '.join(str(reason).split()) or type(reason).__name__}"
        except OSError as error:
            raise InputError(f"{part}: cannot be written ({error}); make room or choose another --output") from error
    kept = f"; {_size(part):,} bytes are kept in {part}" if _size(part) else ""
    raise InputError(f"{problem}{kept}; run the command again when the server can be reached")


def _continue(url: str, part: str, say: Callable[[str], None]) -> bool:
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  # http(s) only: fetch.py
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310  # http(s) only: fetch.py
    except urllib.error.HTTPError as error:
        with error:
            return _refused(url, part, have, error)
    with response:
        # A server that knows no ranges answers 200 and begins anew.
        resumed = bool(response.status == HTTPStatus.PARTIAL_CONTENT)
        if resumed and not str(response.headers.get("Content-Range")).startswith(f"bytes {have}-"):
            raise InputError(f"{url}: asked for the bytes from {have} on, the server sent others; delete {part}")
        _receive(response, part, have if resumed else 0, say)
        return resumed


def _refused(url: str, part: str, have: int, error: urllib.error.HTTPError) -> bool:
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        # "bytes */N": nothing lies beyond what we have. It is the whole file, or a piece of another one.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        os.remove(part)
        raise _WorthAnotherTryError(f"{part} is longer than the file, it was deleted")
    if error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _WorthAnotherTryError(f"HTTP {error.code} {error.reason}")
    raise InputError(f"{url}: HTTP {error.code} {error.reason}; look at the address and at --base-url")


def _receive(response: http.client.HTTPResponse, part: str, have: int, say: Callable[[str], None]) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    shown = have
    with open(part, "r+b" if have else "wb") as stream:
        stream.seek(have)
        while block := response.read(_BLOCK_BYTES):
            stream.write(block)
            have += len(block)
            if have - shown >= _PROGRESS_BYTES:
                shown = have
                say(f"{have >> 20} of {total >> 20} MiB" if total else f"{have >> 20} MiB")
    # read() ends quietly where the connection does.
    if total is not None and have < total:
        raise _WorthAnotherTryError(f"the connection ended after {have:,} of {total:,} bytes")


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0
