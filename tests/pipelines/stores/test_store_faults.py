"""Faults of a store and of the network to it: nothing is lost or half read, and one line states each."""

from __future__ import annotations

import gc
import io
import os
import threading
from typing import IO

import pytest
from tests.support.object_store.fault_proxy import FaultProxy
from tests.support.object_store.s3_server import S3Server

from pipelines.contract import storage
from pipelines.contract.errors import EXIT_BAD_INPUT, EXIT_FAILED, report
from pipelines.stores.failures import StoreError, StoreUnavailableError
from pipelines.stores.opening import handler_of
from pipelines.stores.patience import PATIENCE_VARIABLE
from pipelines.stores.patient_filesystem import BLOCK_BYTES, PatientHandler, StoreWays

DATA = os.urandom(3 << 20)


@pytest.fixture
def uri(s3_server: S3Server, s3_proxy: FaultProxy) -> str:
    """An object behind the proxy."""
    assert s3_proxy.endpoint != s3_server.endpoint
    place = storage.join(s3_server.new_prefix(), "object")
    storage.write_bytes(place, DATA)
    return place


FAULTS = [
    ({"kind": "status", "requests": 5}, "the store asks to slow down or is out of service (503)"),
    ({"kind": "status", "requests": 5, "status": 500, "code": "InternalError"}, "the store fails internally (5xx)"),
    ({"kind": "down", "requests": 6}, "the connection to the store fails"),
    ({"kind": "cut", "requests": 3}, "the connection to the store fails"),
    (
        {"kind": "status", "requests": 2, "status": 400, "code": "BadRequest", "methods": ("HEAD",)},
        "the store refuses a request and gives no reason (400)",
    ),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_transient_faults_are_waited_for_and_said_once(
    uri: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str], fault: dict[str, object], line: str
) -> None:
    s3_proxy.add(**fault)  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == DATA
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert said[0].startswith(f"{uri}: {line} (")
    assert "retrying for up to 900 s" in said[0]
    assert said[1].startswith("s3://bucket: answers again after")


def test_uploads_are_repeated_and_appear_complete(uri: str, s3_proxy: FaultProxy) -> None:
    other = uri + "2"
    s3_proxy.add("status", requests=5, methods=("PUT", "POST"))
    storage.write_bytes(other, DATA)
    s3_proxy.withdraw()
    assert storage.read_bytes(other) == DATA
    assert storage.list_files(uri.rpartition("/")[0]) == ["object", "object2"]


class _Interrupted(io.BytesIO):
    """Content that a signal interrupts at a block."""

    def __init__(self, data: bytes, block: int) -> None:
        super().__init__(data)
        self.blocks_left = block

    def read(self, size: int | None = -1) -> bytes:
        self.blocks_left -= 1
        if not self.blocks_left:
            raise KeyboardInterrupt
        return super().read(size)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_an_interrupted_upload_leaves_the_earlier_object(uri: str, block: int) -> None:
    store, path = storage.filesystem_of(uri)
    handler = handler_of(store)
    assert handler is not None
    with pytest.raises(KeyboardInterrupt):
        handler.put(path, _Interrupted(bytes(3 * BLOCK_BYTES), block))
    gc.collect()
    assert storage.read_bytes(uri) == DATA
    handler.put(path, io.BytesIO(b"new"))
    assert storage.read_bytes(uri) == b"new"


@pytest.mark.parametrize("request_of", ["?uploads", "partNumber=1", "partNumber=2", "object?uploadId="])
def test_a_failing_request_of_an_upload_leaves_the_earlier_object(
    uri: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, request_of: str
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    # Both attempts of Arrow's client for this request; the store answers again before its stream is closed.
    s3_proxy.add("status", requests=2, path_part=request_of)
    with pytest.raises(StoreUnavailableError):
        storage.write_bytes(uri, bytes(BLOCK_BYTES + 1))
    s3_proxy.withdraw()
    gc.collect()
    assert storage.read_bytes(uri) == DATA


def test_what_is_too_large_for_a_copy_in_the_store_is_moved_through_this_machine(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []
    put = PatientHandler.put

    def counted(handler: PatientHandler, path: str, source: IO[bytes]) -> None:
        uploaded.append(path)
        put(handler, path, source)

    monkeypatch.setattr(PatientHandler, "put", counted)
    handler = handler_of(storage.filesystem_of(uri)[0])
    assert handler is not None
    monkeypatch.setattr(handler, "ways", StoreWays(replaces_whole=True, most_copied_bytes=len(DATA)))
    storage.move_file(uri, uri + "-copied")
    assert not uploaded
    monkeypatch.setattr(handler, "ways", StoreWays(replaces_whole=True, most_copied_bytes=len(DATA) - 1))
    storage.move_file(uri + "-copied", uri + "-streamed")
    assert len(uploaded) == 1
    assert storage.read_bytes(uri + "-streamed") == DATA
    assert storage.list_files(uri.rpartition("/")[0]) == ["object-streamed"]


def test_moves_and_deletions_survive_lost_requests(uri: str, s3_proxy: FaultProxy) -> None:
    folder = uri.rpartition("/")[0]
    s3_proxy.add("status", requests=4, methods=("PUT", "DELETE", "POST"))
    storage.move_file(uri, storage.join(folder, "moved"))
    s3_proxy.add("down", requests=4, methods=("DELETE",))
    storage.remove_file(storage.join(folder, "moved"))
    assert storage.list_files(folder) == []


def test_slow_answers_are_waited_for(uri: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str]) -> None:
    s3_proxy.add("slow", seconds=1.5, requests=2)
    assert storage.read_bytes(uri) == DATA
    assert capfd.readouterr().err == ""


def test_truncated_answer_is_not_taken_for_the_object(uri: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.add("truncated", requests=2, methods=("GET",))
    assert storage.read_bytes(uri) == DATA


def test_expired_credentials_are_renewed(uri: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str]) -> None:
    s3_proxy.add("status", status=400, code="ExpiredToken", message="The provided token has expired.")
    threading.Timer(1.0, s3_proxy.withdraw).start()
    assert storage.read_bytes(uri) == DATA
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert f"{uri}: the credentials have expired" in said[0]
    assert "renew them where this process reads them" in said[0]


REFUSALS = [
    ("RequestTimeTooSkewed", 403, "the clock of this machine differs from the store's"),
    ("SignatureDoesNotMatch", 403, "the store does not accept the credentials"),
    ("AccessDenied", 403, "the store denies access"),
    ("NoSuchBucket", 404, "there is no such bucket"),
]


@pytest.mark.parametrize(("code", "status", "line"), REFUSALS)
def test_refusals_are_stated_at_once(
    uri: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str], code: str, status: int, line: str
) -> None:
    message = "The difference between the request time and the current time is too large." if "Skewed" in code else code
    s3_proxy.add("status", status=status, code=code, message=message)
    asked_before = len(s3_proxy.requests)
    with pytest.raises(StoreError) as refused:
        storage.write_bytes(uri, b"new")
    # The client itself repeats a request once with the store's clock; nothing else is repeated.
    assert len(s3_proxy.requests) - asked_before == (2 if "Skewed" in code else 1)
    assert report(refused.value) == EXIT_BAD_INPUT
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(f"error: {uri}: {line}")
    s3_proxy.withdraw()
    assert storage.read_bytes(uri) == DATA


def test_patience_ends_with_one_line(
    uri: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one attempt takes on a loaded machine, so that there is a second one.
    monkeypatch.setenv(PATIENCE_VARIABLE, "6")
    s3_proxy.add("down")
    with pytest.raises(StoreUnavailableError) as given_up:
        storage.file_size_bytes(uri)
    assert report(given_up.value) == EXIT_FAILED
    waiting, error = capfd.readouterr().err.splitlines()
    assert "retrying for up to 6 s" in waiting
    assert error.startswith(f"error: {uri}: the connection to the store fails (NETWORK_CONNECTION, HeadObject), for ")
    assert error.endswith("run the same command again")
