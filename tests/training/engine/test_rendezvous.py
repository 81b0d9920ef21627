"""Where ranks meet, and what ranks that were killed leave in shared memory."""

from __future__ import annotations

import mmap
import os
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from training.engine import shared_memory
from training.engine.rendezvous import all_ranks_are_here, meeting_store
from training.engine.shared_memory import remove_abandoned_buffers


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections(kind="inet")
    return {tuple(found.laddr) for found in connections if found.status == psutil.CONN_LISTEN}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    settings = {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_store_listens_on_loopback_only(alone: pytest.MonkeyPatch) -> None:
    # Whatever the launcher calls this machine.
    alone.setenv("MASTER_ADDR", "some.host.example")
    before = listening()
    store = meeting_store(0, 1, timedelta(seconds=30))
    store.set("name", "value")
    assert store.get("name") == b"value"
    assert listening() - before == {("127.0.0.1", int(os.environ["MASTER_PORT"]))}


def test_ranks_of_several_machines_meet_at_the_named_address(
    alone: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("LOCAL_SIZE", "1")
    assert not all_ranks_are_here()
    alone.setenv("MASTER_ADDR", "127.0.0.2")
    before = listening()
    # A store waits for the others: one rank is enough to see where it listens.
    store = meeting_store(0, 1, timedelta(seconds=30))
    assert listening() - before == {("127.0.0.2", int(os.environ["MASTER_PORT"]))}
    del store
    alone.setenv("MASTER_PORT", "0")
    # Of a network that documents use: an address of no machine.
    alone.setenv("MASTER_ADDR", "192.0.2.1")
    with pytest.raises(Exception, match=r"192\.0\.2\.1|timed out|connect"):
        meeting_store(0, 1, timedelta(seconds=1))
    assert "MASTER_ADDR = 192.0.2.1 is not an address of this machine; rank 0 listens on all" in capfd.readouterr().err


def test_buffers_that_nobody_has_mapped_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_YOUNG_SECONDS", 0.0)
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1"
    for name in (
        f"{prefix}_29500_0",
        f"{prefix}_29501_0",
        "deepspeed_allreduce_buffer_99999_127.0.0.1_29500_0",
        "other",
    ):
        (tmp_path / name).write_bytes(bytes(4096))
    with open(tmp_path / f"{prefix}_29500_0", "r+b") as stream, mmap.mmap(stream.fileno(), 4096):
        assert remove_abandoned_buffers(str(tmp_path)) == [str(tmp_path / f"{prefix}_29501_0")]
    assert remove_abandoned_buffers(str(tmp_path)) == [str(tmp_path / f"{prefix}_29500_0")]
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_abandoned_buffers(str(tmp_path / "absent")) == []
