"""The rate at which files of a store reach the local cache, against a plain download by boto3.

The store is a real S3 server on loopback, on this machine's disk. Ours verifies size and SHA-256; the peer downloads
the same objects with `get_object` and verifies nothing; both flush their files to the disk.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
from tests.support.measuring import medians
from tests.support.object_store.s3_server import S3Server, running_server

from pipelines.contract import storage
from pipelines.contract.manifest import FileRecord, record_of
from pipelines.staging.local_cache import LocalCache
from pipelines.staging.staged import StagedDirectory

NUM_FILES, FILE_BYTES = 8, 64 << 20
GOAL = 0.7
_BLOCK_BYTES = 8 << 20


def staging(rounds: int) -> dict[str, Any]:
    """MB/s of both, and whether the cache holds the bytes of the store."""
    with tempfile.TemporaryDirectory() as scratch, running_server(Path(scratch)) as server:
        os.environ.update(server.environment)
        return _measured(server, Path(scratch), rounds)


def _measured(server: S3Server, scratch: Path, rounds: int) -> dict[str, Any]:
    uri = server.new_prefix()
    records = _stored_files(uri)
    client = boto3.client("s3", endpoint_url=server.endpoint)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    megabytes = NUM_FILES * FILE_BYTES / 1e6
    first_seconds, all_seconds = [], []
    is_identical = True

    def ours() -> float:
        nonlocal is_identical
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            staged = StagedDirectory(uri, records, LocalCache(directory, 10 * NUM_FILES * FILE_BYTES))
            start = time.perf_counter()
            staged.prefetch([record.name for record in records])
            staged.path(records[0].name)
            first_seconds.append(time.perf_counter() - start)
            paths = [staged.path(record.name) for record in records]
            all_seconds.append(time.perf_counter() - start)
            for path, record in zip(paths, records, strict=True):
                is_identical &= hashlib.sha256(Path(path).read_bytes()).hexdigest() == record.sha256
            staged.close()
        return megabytes / all_seconds[-1]

    def peer() -> float:
        nonlocal is_identical
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            paths = [os.path.join(directory, record.name) for record in records]
            start = time.perf_counter()
            for record, path in zip(records, paths, strict=True):
                body = client.get_object(Bucket=bucket, Key=f"{prefix}/{record.name}")["Body"]
                with open(path, "wb") as target:
                    while block := body.read(_BLOCK_BYTES):
                        target.write(block)
                    target.flush()
                    os.fsync(target.fileno())
            seconds = time.perf_counter() - start
            for path, record in zip(paths, records, strict=True):
                is_identical &= hashlib.sha256(Path(path).read_bytes()).hexdigest() == record.sha256
            return megabytes / seconds

    rate, peer_rate, ratio = medians(ours, peer, rounds)
    return {
        "mb_per_second": round(rate, 1),
        "peer": f"boto3 {boto3.__version__}, get_object",
        "peer_mb_per_second": round(peer_rate, 1),
        "ratio": round(ratio, 3),
        "identical": is_identical,
        "first_file_seconds": round(statistics.median(first_seconds), 2),
        "all_files_seconds": round(statistics.median(all_seconds), 2),
        "server": server.kind,
        "missed": [] if ratio >= GOAL and is_identical else [f"staging: {ratio:.2f} of the store's rate, {GOAL} asked"],
    }


def _stored_files(uri: str) -> list[FileRecord]:
    """Files of random bytes, as large as shards of examples often are."""
    records = []
    for index in range(NUM_FILES):
        name = f"train-{index:05d}-of-{NUM_FILES:05d}.arrow"
        storage.write_bytes(storage.join(uri, name), os.urandom(FILE_BYTES))
        records.append(record_of(uri, name, 1))
    return records
