"""Stores that are not S3, on loopback: Azurite, Microsoft's emulator of Azure Blob Storage, and fake-gcs-server.

They are emulators, not the services: neither checks a signature as the service does, and Azurite has no hierarchical
namespace.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs
from tests.support.go_programs import GoProgram
from tests.support.object_store.s3_server import free_port

AZURITE_VERSION = "3.37.0"
FAKE_GCS_SERVER = GoProgram(
    module="fake-gcs-server",
    version="1.56.1",
    program="fake-gcs-server",
    commands=[["install", "github.com/fsouza/fake-gcs-server@v1.56.1"]],
    timeout_seconds=1_800.0,
)
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published in Azurite's documentation; every installation has it."""
_START_SECONDS = 60.0
_INSTALL_SECONDS = 600.0


@dataclass(frozen=True)
class OtherStore:
    """A running store with one bucket or container."""

    place: str
    """URI of the bucket."""
    environment: dict[str, str]
    """What a client needs."""

    def new_prefix(self) -> str:
        """A URI below which nothing is stored yet."""
        return f"{self.place}/{uuid.uuid4().hex[:12]}"


def azurite_program() -> Path | None:
    """Azurite's script, installed at the first call; None where npm is missing or cannot reach a registry."""
    default = os.path.expanduser("~/.cache/clozeworks/tests")
    folder = Path(os.environ.get("CLOZEWORKS_TEST_CACHE") or default) / f"azurite-{AZURITE_VERSION}"
    program = folder / "node_modules/azurite/dist/src/blob/main.js"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            command = [npm, "install", "--no-audit", "--no-fund", "--fetch-retries=1", f"azurite@{AZURITE_VERSION}"]
            try:
                subprocess.run(
                    command, cwd=folder, timeout=_INSTALL_SECONDS, capture_output=True, text=True, check=True
                )
            except subprocess.SubprocessError as error:
                print(f"azurite cannot be installed: {error}", file=sys.stderr)
                return None
    return program


@contextmanager
def running_azurite(directory: Path) -> Iterator[OtherStore]:
    """Run Azurite over a directory until the block ends."""
    program, port = azurite_program(), free_port()
    assert program is not None
    command = ["node", str(program), "--silent", "--location", str(directory), "--skipApiVersionCheck"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]
    authority = f"127.0.0.1:{port}"
    environment = {
        "AZURE_STORAGE_ACCOUNT": _ACCOUNT,
        "AZURE_STORAGE_KEY": _KEY,
        "AZURE_STORAGE_BLOB_AUTHORITY": authority,
        "AZURE_STORAGE_DFS_AUTHORITY": authority,
        "AZURE_STORAGE_SCHEME": "http",
    }
    with _running(command, port, directory):
        fs.AzureFileSystem(
            _ACCOUNT,
            account_key=_KEY,
            blob_storage_authority=authority,
            dfs_storage_authority=authority,
            blob_storage_scheme="http",
            dfs_storage_scheme="http",
        ).create_dir("container")
        yield OtherStore("az://container", environment)


@contextmanager
def running_fake_gcs(directory: Path) -> Iterator[OtherStore]:
    """Run fake-gcs-server in memory until the block ends."""
    program, port = FAKE_GCS_SERVER.built(), free_port()
    assert program is not None
    address = f"http://127.0.0.1:{port}"
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with _running([*command, "-external-url", address, "-log-level", "error"], port, directory):
        fs.GcsFileSystem(
            anonymous=True, endpoint_override=f"127.0.0.1:{port}", scheme="http", project_id="test"
        ).create_dir("bucket")
        # The client of Google's own emulators reads this variable.
        yield OtherStore("gs://anonymous@bucket", {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address})


@contextmanager
def _running(command: list[str], port: int, directory: Path) -> Iterator[None]:
    with open(directory / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(port):
            assert process.poll() is None, (directory / "server.log").read_text()
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session", params=["azure", "gcs"])
def other_store_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OtherStore]:
    """Each of the stores; a process does not use it until it has its `environment`."""
    directory = tmp_path_factory.mktemp("store")
    if request.param == "azure":
        if azurite_program() is None:
            pytest.skip("npm is missing, or has no azurite")
        with running_azurite(directory) as found:
            yield found
    else:
        if FAKE_GCS_SERVER.built() is None:
            pytest.skip("Go is missing, or has no fake-gcs-server")
        with running_fake_gcs(directory) as found:
            yield found


@pytest.fixture
def other_store(other_store_server: OtherStore, monkeypatch: pytest.MonkeyPatch) -> OtherStore:
    """A store that this process and its children use."""
    for name, value in other_store_server.environment.items():
        monkeypatch.setenv(name, value)
    return other_store_server
