"""Servers on this machine's loopback, reached at the same addresses from other network namespaces.

Nothing listens beyond a loopback interface: a socket that was bound inside a namespace stays there, whichever process
accepts its connections, and this one passes them to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 1 << 16
_BIND = """
import socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"listens"], [listening.fileno()])
"""


class Doors:
    """Ports of this machine's loopback that further namespaces have too."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="doors", daemon=True)
        self._thread.start()

    def open(self, within: Callable[[list[str]], list[str]]) -> None:
        """Open all ports in a namespace; `within` makes a command line run there."""
        for port in self._ports:
            serving = asyncio.start_server(partial(_pass_on, port), sock=_listening(within, port))
            asyncio.run_coroutine_threadsafe(serving, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextlib.contextmanager
def doors(ports: Sequence[int]) -> Iterator[Doors]:
    """Doors for as long as the context lasts."""
    opened = Doors(ports)
    try:
        yield opened
    finally:
        opened.close()


def _listening(within: Callable[[list[str]], list[str]], port: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = within([sys.executable, "-c", _BIND, str(port), str(theirs.fileno())])
        subprocess.run(command, pass_fds=[theirs.fileno()], check=True)
        _, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
    return socket.socket(fileno=descriptors[0])


async def _pass_on(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        to_reader, to_writer = await asyncio.open_connection(_LOOPBACK, port)
    except OSError:
        # As a server that is down: the client's connection is reset.
        writer.transport.abort()
        return
    await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))
    for each in (writer, to_writer):
        each.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on to their end; the other direction stays open."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
