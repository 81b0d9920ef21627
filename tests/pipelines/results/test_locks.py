"""One holder at a time, named in the error; a lock always ends with its holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.results import locks
from pipelines.results.locks import consumed, workspace_lock

HOLDER = """
import sys, time
from pipelines.results.locks import workspace_lock
with workspace_lock(sys.argv[1], "documents"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_one_is_refused_by_name_until_the_first_is_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    with (
        pytest.raises(InputError, match=rf"^documents: being written by process {holder.pid} on .* since 2.* \(.*-c"),
        workspace_lock(str(tmp_path), "documents"),
    ):
        pass
    with workspace_lock(str(tmp_path), "vocabulary"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    with workspace_lock(str(tmp_path), "documents", wait_seconds=30):
        pass


def test_what_others_read_is_not_replaced_meanwhile(tmp_path: Path) -> None:
    workspace = str(tmp_path)
    with consumed(workspace, ("examples", "vocabulary")), consumed(workspace, ["examples"]):
        with (
            pytest.raises(InputError, match=r"^vocabulary: being read by process"),
            workspace_lock(workspace, "vocabulary"),
        ):
            pass
        with workspace_lock(workspace, "documents"):
            pass
    with (
        workspace_lock(workspace, "examples"),
        pytest.raises(InputError, match=r"^examples: being written by process"),
        consumed(workspace, ["examples"]),
    ):
        pass


def test_one_that_waits_gets_it_in_the_end(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    with pytest.raises(InputError), workspace_lock(str(tmp_path), "documents", wait_seconds=0.5):
        pass
    assert time.monotonic() - started >= 0.5
    holder.kill()
    with workspace_lock(str(tmp_path), "documents", wait_seconds=30):
        pass


def test_a_child_does_not_inherit_it(tmp_path: Path) -> None:
    with workspace_lock(str(tmp_path), "documents"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with workspace_lock(str(tmp_path), "documents"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fs.FileSystem:
    """A directory behind its own scheme, used only as every store can be: files by name."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "filesystem_of", lambda uri: (store, uri.removeprefix("store://")))
    store.create_dir("run/.locks", recursive=True)
    return store


@pytest.mark.usefixtures("store")
def test_an_object_store_has_leases_that_are_abandoned_when_not_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workspace_lock("store://run", "documents"):
        with pytest.raises(InputError, match=rf"process {os.getpid()} on"), workspace_lock("store://run", "documents"):
            pass
        monkeypatch.setattr(locks, "_LEASE_SECONDS", -1.0)
        with workspace_lock("store://run", "documents"):
            pass
    assert not list(tmp_path.glob("run/.locks/*"))


def test_who_stood_still_and_lost_the_lease_ends_and_leaves_it_to_the_other(
    store: fs.FileSystem, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "_RENEWAL_SECONDS", 0.2)
    others = json.dumps({"lease": "other", "pid": 17, "renewed_at": time.time()}).encode()

    def stand_still() -> None:
        with workspace_lock("store://run", "documents"):
            storage.write_bytes("store://run/.locks/documents.lock", others)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        stand_still()
    assert storage.read_bytes("store://run/.locks/documents.lock") == others
    assert "documents: being written by process 17" in capfd.readouterr().err
    assert store.get_file_info("run/.locks/documents.lock").is_file


@pytest.mark.usefixtures("store")
def test_a_background_command_that_ignores_interrupts_ends_with_its_lease_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_RENEWAL_SECONDS", 0.1)
    others = json.dumps({"lease": "other", "pid": 17, "renewed_at": time.time()}).encode()
    received = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        with workspace_lock("store://run", "documents"):
            storage.write_bytes("store://run/.locks/documents.lock", others)
            assert received.wait(60)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("lease", [b"", b"[]", b'{"renewed_at": "x"}', b'{"renewed_at": null}'])
@pytest.mark.usefixtures("store")
def test_a_damaged_lease_counts_as_abandoned(lease: bytes) -> None:
    storage.write_bytes("store://run/.locks/documents.lock", lease)
    with workspace_lock("store://run", "documents"):
        pass
