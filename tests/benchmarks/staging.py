"""A workspace in an object store: staging rate and start-up of an empty node, against a plain download by boto3.

The store is a real S3 server on loopback, on this machine's disk. `value` is the rate at which files of examples reach
the local cache, size and SHA-256 verified; the peer downloads the same objects with boto3's `get_object` and verifies
nothing; both flush their files to the disk. `first_file_seconds` is how long a node with an empty cache waits for its
first file, `all_files_seconds` for the last. `identical`: the cache holds the bytes of the store.
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
from tests.support.measuring import medians, report
from tests.support.object_store.s3_server import S3Server, running_server

from pipelines.contract import storage
from pipelines.contract.manifest import FileRecord, record_of
from pipelines.staging.local_cache import LocalCache
from pipelines.staging.staged import StagedDirectory

RUNS = 5
NUM_FILES, FILE_BYTES = 8, 64 << 20
BLOCK_BYTES = 8 << 20


def stored_files(uri: str) -> list[FileRecord]:
    """Files of random bytes, as large as shards of examples often are."""
    records = []
    for index in range(NUM_FILES):
        name = f"train-{index:05d}-of-{NUM_FILES:05d}.arrow"
        storage.write_bytes(storage.join(uri, name), os.urandom(FILE_BYTES))
        records.append(record_of(uri, name, 1))
    return records


def staging(server: S3Server, scratch: Path) -> dict[str, Any]:
    """MB/s into the local cache, and of the peer; seconds of an empty node."""
    uri = server.new_prefix()
    records = stored_files(uri)
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
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            start = time.perf_counter()
            for record in records:
                body = client.get_object(Bucket=bucket, Key=f"{prefix}/{record.name}")["Body"]
                with open(os.path.join(directory, record.name), "wb") as target:
                    while block := body.read(BLOCK_BYTES):
                        target.write(block)
                    target.flush()
                    os.fsync(target.fileno())
            return megabytes / (time.perf_counter() - start)

    rate, peer_rate, ratio = medians(ours, peer, RUNS)
    return {
        "value": rate,
        "peer": f"boto3 {boto3.__version__}, get_object",
        "peer_value": peer_rate,
        "ratio": ratio,
        "identical": is_identical,
        "first_file_seconds": statistics.median(first_seconds),
        "all_files_seconds": statistics.median(all_seconds),
        "server": server.kind,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, running_server(Path(scratch)) as server:
        os.environ.update(server.environment)
        facts = staging(server, Path(scratch))
    report("staging", facts.pop("value"), "MB/s", runs=RUNS, **facts)


if __name__ == "__main__":
    main()
