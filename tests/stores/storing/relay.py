"""A way to a server that counts the bytes that are sent to it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from .servers import HOST


class Relay:
    """Passes connections on, in threads; use as a context manager.

    Attributes:
        target: port on loopback; to be set before somebody connects.
        carried: bytes that went to it.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.target = 0
        self.carried = 0
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self.target))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink, sink is far), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.carried += len(data) if counted else 0
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
