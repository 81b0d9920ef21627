"""A real S3 server on loopback: versitygw, built once from its Go module; moto's server where Go is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs
from tests.support.go_programs import GoProgram

VERSITYGW = GoProgram(
    module="versitygw",
    version="1.8.0",
    program="versitygw",
    commands=[["install", "github.com/versity/versitygw/cmd/versitygw@v1.8.0"]],
    timeout_seconds=1_800.0,
)
_START_SECONDS = 30.0
_ACCESS_KEY, _SECRET_KEY = "test-access-key", "test-secret-key"
_REGION = "us-east-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    kind: str
    """`versitygw` or `moto`."""
    endpoint: str
    bucket: str
    root: Path
    """Directory of versitygw's buckets."""

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need: Arrow, boto3 and MLflow."""
        return client_environment(self.endpoint)

    def new_prefix(self) -> str:
        """A URI below which nothing is stored yet."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:12]}"


def client_environment(endpoint: str) -> dict[str, str]:
    """Environment of clients of this server, which may reach it through another endpoint, such as a proxy."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
        "AWS_DEFAULT_REGION": _REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def running_server(directory: Path, bucket: str = "bucket") -> Iterator[S3Server]:
    """Run a server over a directory until the block ends."""
    port, program = free_port(), VERSITYGW.built()
    root = directory / "buckets"
    (root / bucket).mkdir(parents=True)
    if program is not None:
        kind, command = "versitygw", [str(program), "--port", f"127.0.0.1:{port}", "--health", "/health", "--quiet"]
        command += ["--keep-alive", "posix", str(root)]
    else:
        kind, command = "moto", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "ROOT_ACCESS_KEY": _ACCESS_KEY, "ROOT_SECRET_KEY": _SECRET_KEY}
    with open(directory / "server.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        health = endpoint + ("/health" if kind == "versitygw" else "/moto-api/")
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(health):
            assert process.poll() is None, (directory / "server.log").read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)
        if kind == "moto":
            store = fs.S3FileSystem(
                endpoint_override=endpoint,
                access_key=_ACCESS_KEY,
                secret_key=_SECRET_KEY,
                region=_REGION,
                allow_bucket_creation=True,
            )
            store.create_dir(bucket)
        yield S3Server(kind, endpoint, bucket, root)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the session; this process does not use it until it has its `environment`."""
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_workspace(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new URI in the bucket; this process and those that it starts reach the server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_prefix()
