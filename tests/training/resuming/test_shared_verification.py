"""Ranks share the checksums of the shards, and all of them learn what one finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, record_of
from pipelines.results.verification import Verification, verification_before_reading
from training.engine.meeting import Meeting
from training.engine.processes import Processes
from training.resuming.checkpointed_stage import verify_together

RANKS = 3


@pytest.mark.parametrize("damaged", [None, 0, 4])
def test_all_ranks_learn_what_one_of_them_finds(tmp_path: Path, damaged: int | None) -> None:
    directory = str(tmp_path / "examples")
    names = [f"{number}.arrow" for number in range(7)]
    for name in names:
        storage.write_bytes(f"{directory}/{name}", b"rows" * 100)
    manifest = StageKey("examples", 1, {}, {}).manifest([record_of(directory, name, 1) for name in names], {}, "1")
    if damaged is not None:
        storage.write_bytes(f"{directory}/{damaged}.arrow", b"swor" * 100)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(RANKS)]

    def opened() -> Verification:
        return verification_before_reading(str(tmp_path), "examples", manifest, lambda _: True)

    def rank_of(rank: int) -> str:
        processes = Processes(rank, RANKS, torch.device("cpu"), None, Meeting(stores[rank], rank, RANKS))
        try:
            verify_together(processes, opened)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(RANKS) as threads:
        told = list(threads.map(rank_of, range(RANKS)))
    assert len(set(told)) == 1
    assert told[0] == "" if damaged is None else f"{damaged}.arrow: damaged" in told[0]
    assert [file.name for file in opened().pending] == ([] if damaged is None else names)
