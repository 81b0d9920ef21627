"""Seconds of a node with an empty cache until its first training step, and how much it has staged by then.

The workspace has several hundred MB of examples in many shards. Three ways in turn: on a local disk, in the store with
nothing here, and in the store with all examples copied before the run begins. Time runs from the recipe to the first
step's batch; imports are the same for all and left out. `identical`: that batch has the same bytes in all of them.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tests.support import REPOSITORY
from tests.support.cluster_bench.training_loop import training_of
from tests.support.object_store.s3_server import running_server
from tests.support.training.synthetic_run import Workspace, example_row, write_documents, write_table, write_workspace

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.contract.schemas import examples_schema
from pipelines.contract.workspace import length_directory, shard_name
from pipelines.staging.staged import StagedDirectory

NUM_SHARDS, ROWS_PER_SHARD, LENGTH = 128, 16_384, 64
_KNOWN_ROWS, _HELDOUT_ROWS, _ROWS_PER_BATCH = 4_096, 512, 1_024
SETTINGS = [
    f"pretraining.phases=[{{max_seq_length={LENGTH}, steps=10, global_batch_size=32}}]",
    "pretraining.eval_examples=64",
]


class _FirstStep(Exception):  # noqa: N818 - not an error
    """Ends a run where its first step would be computed."""


@dataclass(frozen=True)
class _Start:
    seconds: float
    staged_bytes: int
    batch: str
    """Digest of the first step's batch."""


def startup(rounds: int) -> dict[str, Any]:
    """Seconds to the first step by the three ways."""
    (REPOSITORY / "build").mkdir(exist_ok=True)
    found: dict[str, list[_Start]] = {"disk": [], "empty": [], "all_first": []}
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory, running_server(Path(directory)) as server:
        os.environ.update(server.environment)
        local = write_workspace(os.path.join(directory, "local"))
        total_bytes = _write_many_examples(local.path)
        remote = Workspace(server.new_prefix(), local.recipe)
        for name in storage.list_files(local.path):
            if name.startswith(("documents/", "vocabulary/", "examples/")):
                storage.write_bytes(storage.join(remote.path, name), storage.read_bytes(storage.join(local.path, name)))
        _start(local, directory, False)  # the later ones find checksums and engine in memory
        for _ in range(rounds):
            found["disk"].append(_start(local, directory, False))
            found["empty"].append(_start(remote, directory, False))
            found["all_first"].append(_start(remote, directory, True))
    seconds = {kind: statistics.median(start.seconds for start in starts) for kind, starts in found.items()}
    staged_share = statistics.median(start.staged_bytes / total_bytes for start in found["empty"])
    saved = statistics.median(
        ours.seconds / all_first.seconds for ours, all_first in zip(found["empty"], found["all_first"], strict=True)
    )
    digests = {start.batch for starts in found.values() for start in starts}
    return {
        "seconds": {kind: round(value, 2) for kind, value in seconds.items()},
        "share_of_staging_all_first": round(saved, 3),
        "examples_mb": round(total_bytes / 1e6, 1),
        "shards": NUM_SHARDS,
        "staged_share_at_first_step": round(staged_share, 3),
        "identical": len(digests) == 1,
        "server": server.kind,
        "missed": [] if staged_share < 1.0 and len(digests) == 1 else ["startup: everything was staged before a step"],
    }


def _write_many_examples(workspace: str) -> int:
    """Replace the examples by rows drawn from a few thousand different ones; returns the bytes to train on."""
    generator = np.random.default_rng(3)
    vocabulary, directory = storage.join(workspace, "vocabulary"), storage.join(workspace, "examples")
    size = len(storage.read_bytes(storage.join(vocabulary, "vocab.txt")).split())
    metadata = {
        "vocabulary_sha256": storage.sha256_of(storage.join(vocabulary, "vocab.txt")),
        "vocabulary_size": str(size),
        "lowercase": "true",
        "max_seq_length": str(LENGTH),
    }
    with tempfile.TemporaryDirectory() as scratch:
        documents = write_documents(scratch, 200)
    rows = [example_row(generator, documents, LENGTH) for _ in range(_KNOWN_ROWS)]
    known = pa.Table.from_pylist(rows, schema=examples_schema(size, metadata))
    storage.remove_directory(directory)
    files = []
    for split, shards, count in (("train", NUM_SHARDS, ROWS_PER_SHARD), ("heldout", 1, _HELDOUT_ROWS)):
        for shard in range(shards):
            name = storage.join(length_directory(LENGTH), shard_name(split, shard, shards))
            table = known.take(pa.array(generator.integers(_KNOWN_ROWS, size=count))).combine_chunks()
            write_table(storage.join(directory, name), table, max_chunksize=_ROWS_PER_BATCH)
            files.append(record_of(directory, name, count))
    write_manifest(directory, StageKey("examples", 1, {}, {}).manifest(files, {}, "test"))
    return sum(file.size_bytes for file in files if "train" in file.name)


def _start(workspace: Workspace, scratch: str, stages_all_first: bool) -> _Start:
    storage.remove_directory(storage.join(workspace.path, "pretraining.building"))
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        began = time.perf_counter()
        reached: list[_Start] = []
        with training_of(workspace, [f"run.local_directory='{cache}'", *SETTINGS]) as run:
            copies = run._inputs.example_copies
            if stages_all_first:
                assert isinstance(copies, StagedDirectory)
                copies.prefetch([record.name for record in run._inputs.examples.files])
                copies.all()

            def first_step(_engine: Any, batch: Any, _progress: Any) -> Any:
                reached.append(_Start(time.perf_counter() - began, _bytes_in(cache), _digest(batch)))
                raise _FirstStep

            run._step = first_step
            try:
                run.run(restart=None)
            except _FirstStep:
                pass
            finally:
                if copies is not None:
                    copies.close()
        return reached[0]


def _bytes_in(cache: str) -> int:
    """Bytes of complete files; a partial one has its final size from the start."""
    files = Path(cache, "files")
    return sum(path.stat().st_size for path in files.rglob("*") if path.is_file())


def _digest(batch: Any) -> str:
    part = batch.micro_batches[0]
    digest = hashlib.sha256(part.masked_lm_positions_M.numpy().tobytes())
    digest.update(part.masked_lm_ids_M.numpy().tobytes())
    return digest.hexdigest()
