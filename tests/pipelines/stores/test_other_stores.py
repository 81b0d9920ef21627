"""Azure Blob Storage and Google Cloud Storage, as emulators on loopback: complete objects, moves, failures."""

from __future__ import annotations

import io
import os

import pytest
from tests.support.object_store.other_stores import OtherStore

from pipelines.contract import storage
from pipelines.contract.errors import EXIT_BAD_INPUT, report
from pipelines.stores.failures import StoreError
from pipelines.stores.opening import handler_of
from pipelines.stores.patience import PATIENCE_VARIABLE
from pipelines.stores.patient_filesystem import BLOCK_BYTES, PatientHandler, StoreWays

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATA = os.urandom(BLOCK_BYTES + 12_345)


def handler_for(store: OtherStore) -> PatientHandler:
    handler = handler_of(storage.filesystem_of(store.place)[0])
    assert handler is not None
    return handler


class Observed(io.BytesIO):
    """A source that looks at the object that it replaces after each block."""

    def __init__(self, data: bytes, uri: str) -> None:
        super().__init__(data)
        self.uri, self.seen = uri, list[bytes]()

    def read(self, size: int | None = -1) -> bytes:
        self.seen.append(storage.read_bytes(self.uri))
        return super().read(size)


def test_an_object_is_replaced_when_it_is_complete(other_store: OtherStore) -> None:
    uri = storage.join(other_store.new_prefix(), "object")
    storage.write_bytes(uri, b"earlier")
    handler, path = handler_for(other_store), storage.filesystem_of(uri)[1]
    source = Observed(DATA, uri)
    handler.put(path, source)
    assert source.seen == [b"earlier"] * 3  # two blocks, and the end
    assert storage.read_bytes(uri) == DATA
    with storage.open_seekable(uri) as stream:
        stream.seek(BLOCK_BYTES - 5)
        assert stream.read(10) == DATA[BLOCK_BYTES - 5 : BLOCK_BYTES + 5]


def test_an_upload_that_fails_leaves_the_earlier_object_and_nothing_else(other_store: OtherStore) -> None:
    uri = storage.join(other_store.new_prefix(), "object")
    storage.write_bytes(uri, b"earlier")

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise KeyboardInterrupt
            return super().read(size)

    with pytest.raises(KeyboardInterrupt):
        handler_for(other_store).put(storage.filesystem_of(uri)[1], Broken(DATA))
    assert storage.read_bytes(uri) == b"earlier"
    assert storage.list_files(uri.rpartition("/")[0]) == ["object"]


def test_files_and_directories_are_listed_moved_and_removed(other_store: OtherStore) -> None:
    root = other_store.new_prefix()
    for name in ("a/one", "a/b/two", "c"):
        storage.write_bytes(storage.join(root, name), name.encode())
    assert storage.list_files(root) == ["a/b/two", "a/one", "c"]
    storage.move_file(storage.join(root, "c"), storage.join(root, "a/three"))
    storage.move_directory(storage.join(root, "a"), storage.join(root, "moved"))
    assert storage.list_files(root) == ["moved/b/two", "moved/one", "moved/three"]
    assert storage.read_bytes(storage.join(root, "moved/three")) == b"c"
    storage.remove_file(storage.join(root, "moved/one"))
    assert storage.list_files(root) == ["moved/b/two", "moved/three"]
    assert storage.file_size_bytes(storage.join(root, "moved/one")) is None
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "moved/one"))


def test_what_the_store_cannot_copy_is_written_and_moved_through_this_machine(
    other_store: OtherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, handler = other_store.new_prefix(), handler_for(other_store)
    ways = StoreWays(replaces_whole=handler.ways.replaces_whole, most_copied_bytes=len(DATA) - 1)
    monkeypatch.setattr(handler, "ways", ways)
    storage.write_bytes(storage.join(root, "large"), DATA)
    storage.move_file(storage.join(root, "large"), storage.join(root, "moved"))
    assert storage.list_files(root) == ["moved"]
    assert storage.read_bytes(storage.join(root, "moved")) == DATA


def test_a_store_that_is_away_is_one_line(
    other_store: OtherStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    for name, value in other_store.environment.items():
        if "127.0.0.1:" in value:
            monkeypatch.setenv(name, value.rpartition(":")[0] + ":1")
    with pytest.raises(StoreError) as refused:
        storage.read_bytes(storage.join(other_store.place, "object"))
    assert report(refused.value) != EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "the connection to the store fails" in lines[0]
