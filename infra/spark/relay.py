"""Forward connections from a socket of one network to a port in another: `relay.py LISTENING_FD PORT`.

A socket stays in the network where it was opened, so a process that enters another network reaches both.
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress


def carry(source: socket.socket, target: socket.socket) -> None:
    # Either side may close the connection at any time.
    with suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    while True:
        outside, _ = listener.accept()
        inside = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
        for ends in ((outside, inside), (inside, outside)):
            threading.Thread(target=carry, args=ends, daemon=True).start()


if __name__ == "__main__":
    main()
