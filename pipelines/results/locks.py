"""One writer at a time and none while others read: one lock per stage, and one for what several stages share.

A local lock is the kernel's (`flock`), so it always ends with its holder. Object stores have no such lock: there it is
a lease, a small object that its holder renews and that counts as abandoned when it is not renewed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError, writing
from pipelines.stores.failures import StoreUnavailableError

LOCKS_DIRECTORY = ".locks"

_POLL_SECONDS = 0.2
_LEASE_SECONDS = 90.0
"""A lease that was not renewed for this long, by the store's clock, has lost its holder."""
_RENEWAL_SECONDS = 20.0
_MOST_COMMAND_CHARACTERS = 160


@contextmanager
def workspace_lock(workspace: str, name: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock of a workspace for the duration of the block.

    Args:
        workspace: directory or URI.
        name: what is locked, such as `documents` or `finetuning/rte/pretrained`.
        wait_seconds: how long to wait for another holder.

    Raises:
        InputError: another process holds it; the line names that process.
    """
    uri = _uri_of(workspace, name)
    with _local_lock(uri, name, wait_seconds) if storage.is_local(uri) else _lease(uri, name, wait_seconds):
        yield


@contextmanager
def consumed(workspace: str, stages: Iterable[str]) -> Iterator[None]:
    """Prevent the stages that another one reads from being replaced during the block; many may read at once.

    On an object store nothing is locked: a stage that was built from a replaced input is found stale there.

    Raises:
        InputError: one of the stages is being built; the line names that process.
    """
    with ExitStack() as stack:
        for stage in sorted(stages):
            uri = _uri_of(workspace, stage)
            if storage.is_local(uri):
                stack.enter_context(_local_lock(uri, stage, 0.0, is_shared=True))
        yield


def _uri_of(workspace: str, name: str) -> str:
    return storage.join(workspace, LOCKS_DIRECTORY, name.replace("/", "-") + ".lock")


@contextmanager
def _local_lock(uri: str, name: str, wait_seconds: float, is_shared: bool = False) -> Iterator[None]:
    path = storage.local_path(uri)
    storage.make_directory(os.path.dirname(path))
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(_refusal(name, _parsed(os.pread(descriptor, 1 << 16, 0)))) from None
                time.sleep(_POLL_SECONDS)
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_holder() | {"reads": is_shared}).encode(), 0)
        # The file stays: deleting it could give two holders two files of one name.
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def _lease(uri: str, name: str, wait_seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + wait_seconds
    own = {**_holder(), "lease": uuid.uuid4().hex}
    while (other := _other_lease(uri, own["lease"])) is not None:
        if time.monotonic() >= deadline:
            raise InputError(_refusal(name, other))
        time.sleep(_POLL_SECONDS)
    _renew(uri, own)
    # Two may have written at once: the last one holds the lease, and the other gives way.
    time.sleep(_POLL_SECONDS)
    if (other := _other_lease(uri, own["lease"])) is not None:
        raise InputError(_refusal(name, other))
    ended = threading.Event()
    renewal = threading.Thread(target=_keep_renewing, args=(uri, name, own, ended), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    except StoreUnavailableError:
        # It was waited for long enough: the lease ends by itself.
        ended.set()
        raise
    except BaseException:
        _end_lease(uri, own, ended, renewal)
        raise
    _end_lease(uri, own, ended, renewal)


def _end_lease(uri: str, own: dict[str, Any], ended: threading.Event, renewal: threading.Thread) -> None:
    ended.set()
    renewal.join()
    if _other_lease(uri, own["lease"]) is None:
        storage.remove_file(uri)


def _keep_renewing(uri: str, name: str, own: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(_RENEWAL_SECONDS):
        try:
            if (other := _other_lease(uri, own["lease"])) is not None:
                # This process was suspended until its lease expired: two writers would be worse than none.
                print(f"{_refusal(name, other)}; this process lost its lease and ends", file=sys.stderr, flush=True)
                _end_this_process()
                return
            _renew(uri, own)
        except OSError as error:
            print(f"lease {uri} could not be renewed ({error}); retrying", file=sys.stderr, flush=True)


def _end_this_process() -> None:
    # A script's background commands start with SIGINT ignored: there the interrupt would leave two writers.
    is_heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT if is_heard else signal.SIGTERM)


def _renew(uri: str, own: dict[str, Any]) -> None:
    storage.write_bytes(uri, json.dumps({**own, "renewed_at": time.time()}).encode())


def _other_lease(uri: str, own: str) -> dict[str, Any] | None:
    """The holder of a lease that is neither `own` nor abandoned."""
    if storage.file_size_bytes(uri) is None:
        return None
    try:
        held = _parsed(storage.read_bytes(uri))
    except FileNotFoundError:
        return None  # its holder has just ended
    if held.get("lease") == own or not isinstance(held.get("renewed_at"), int | float):
        return None
    return held if _age_seconds(uri) <= _LEASE_SECONDS else None


def _age_seconds(uri: str) -> float:
    """Time since an object was written, by the store's clock alone: that of an object written now is compared."""
    probe = f"{uri}.{uuid.uuid4().hex}{storage.TEMPORARY_SUFFIX}"
    storage.write_bytes(probe, b"")
    try:
        now_ns, then_ns = (storage.modified_ns(one) for one in (probe, uri))
    finally:
        storage.remove_file(probe)
    return float("inf") if then_ns is None or now_ns is None else (now_ns - then_ns) / 1e9


def _holder() -> dict[str, Any]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = " ".join(sys.orig_argv)[:_MOST_COMMAND_CHARACTERS]
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _parsed(data: bytes) -> dict[str, Any]:
    """The holder that a lock's file names; nothing if it is empty or cut off."""
    try:
        held = json.loads(data)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _refusal(name: str, held: dict[str, Any]) -> str:
    if not held:
        return f"{name}: another process is working on it in this workspace; wait for it to end"
    what = "being read" if held.get("reads") else "being written"
    shown = {key: str(value).encode("unicode_escape").decode() for key, value in held.items()}
    return (
        f"{name}: {what} by process {shown.get('pid')} on {shown.get('host')} since {shown.get('since')} "
        f"({shown.get('command')}); wait for it to end, or stop it"
    )
