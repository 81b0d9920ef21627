"""Rendezvous of ranks: a store that listens only where necessary, and the network interfaces to use."""

from __future__ import annotations

import errno
import os
import socket
import sys
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"
_LOOPBACK_INTERFACE = "lo"


def all_ranks_are_here() -> bool:
    """Whether all ranks of the run are on this machine, according to the launcher."""
    here = os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE"))
    return os.environ["WORLD_SIZE"] in ("1", here)


def stay_on_loopback() -> None:
    """Make gloo and NCCL listen on the loopback interface only; variables that are already set are kept."""
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, _LOOPBACK_INTERFACE)


def meeting_store(rank: int, world_size: int, timeout: timedelta) -> TCPStore:
    """The store at MASTER_ADDR:MASTER_PORT, served by rank 0 on that address only.

    torch's own binds all interfaces. If all ranks are on this machine it is served on loopback whatever MASTER_ADDR
    is; port 0, for a run of one rank, is any free one and is stored in MASTER_PORT. torchrun serves a store itself.
    """
    address = LOOPBACK if all_ranks_are_here() else os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return TCPStore(os.environ["MASTER_ADDR"], port, world_size, is_master=False, timeout=timeout)
    if rank:
        return TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    listener = _listener(address, port)
    port = listener.getsockname()[1]
    os.environ["MASTER_PORT"] = str(port)
    # The store closes the descriptor.
    return TCPStore(
        address, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach(), use_libuv=True
    )


def _listener(address: str, port: int) -> socket.socket:
    """A socket listening on the interface of an address."""
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    try:
        return _bound(family, place)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise OSError(error.errno, f"{address}:{port}: rank 0 cannot listen there ({error.strerror})") from error
    # A service's or router's address, which is forwarded here but does not belong to this machine.
    print(
        f"MASTER_ADDR = {address} is not an address of this machine; rank 0 listens on all interfaces, port {port}",
        file=sys.stderr,
        flush=True,
    )
    everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - MASTER_ADDR requires it
    return _bound(family, (everywhere, port))


def _bound(family: int, place: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Allow a port whose earlier connections have not timed out yet.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place[:2] if family == socket.AF_INET else place)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener
