"""Facts of a machine that must be equal on all nodes of a run, and its address; light, without torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from pipelines.contract import storage
from pipelines.contract.errors import InputError

PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow")
"""Packages whose versions decide what the ranks compute and exchange."""

_OUR_PACKAGES = ("pipelines", "training", "flows")


def versions() -> dict[str, str]:
    """Python, this project's code (a digest) and PACKAGES, by name."""
    return {"Python": platform.python_version(), "code": _code_digest(), **{name: _version(name) for name in PACKAGES}}


def differences(here: dict[str, str], there: dict[str, str]) -> str:
    """The versions that differ, in words; empty if none does."""
    return ", ".join(
        f"{name} {_shown(there.get(name, 'not installed'))} there and {_shown(value)} here"
        for name, value in here.items()
        if there.get(name) != value
    )


def own_address(connection: str) -> str:
    """Address of this machine at which an ssh connection arrived.

    Args:
        connection: the variable SSH_CONNECTION: addresses and ports of client and server.
    """
    parts = connection.split()
    return parts[2] if len(parts) == 4 else socket.gethostbyname(socket.gethostname())


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None if none of this machine's has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return str(name)
    # All of 127.0.0.0/8 belongs to the loopback interface.
    return "lo" if address.startswith("127.") else None


def free_port(address: str) -> int:
    """A port on which rank 0 can listen; DeepSpeed's default of 29500 would collide between two runs on one node."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def has_gpu() -> bool:
    """Whether this machine has a GPU; without importing torch, which takes seconds."""
    return any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


@contextlib.contextmanager
def shared_probe(workspace: str) -> Iterator[tuple[str | None, str]]:
    """A file in a local workspace that exists for as long as nodes look for it, and its content."""
    token = secrets.token_hex(16)
    if not storage.is_local(workspace) or not os.path.isdir(storage.local_path(workspace)):
        yield None, token
        return
    path = os.path.join(os.path.abspath(storage.local_path(workspace)), f".cluster-probe-{token}")
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(token)
        yield path, token
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def require_same(where: str, node: str, facts: Mapping[str, Any], here: dict[str, str], workspace: str) -> None:
    """Check the facts of a node against this machine's.

    Args:
        where: the setting to name in a message.
        here: `versions` of this machine.

    Raises:
        InputError: it has other versions, or does not see a local workspace.
    """
    if different := differences(here, facts["versions"]):
        raise InputError(
            f"{where}: node {node} differs: {different}; install the same versions there, or set "
            "pretraining.cluster.python"
        )
    if not facts["is_shared"]:
        raise InputError(
            f"{where}: node {node} does not see run.workspace = {workspace!r}, which is local; put it on a file system "
            "that all nodes share at this path, or into an object store"
        )


def file_digest(path: str) -> str | None:
    """SHA-256 of a file; None if there is none."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _code_digest() -> str:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    digest = hashlib.sha256()
    for package in _OUR_PACKAGES:
        for directory, names, files in os.walk(os.path.join(root, package)):
            names.sort()
            for name in sorted(files):
                if name.endswith(".py"):
                    path = os.path.join(directory, name)
                    digest.update(f"{os.path.relpath(path, root)} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _shown(value: str) -> str:
    return value[:12] if len(value) == 64 else value
