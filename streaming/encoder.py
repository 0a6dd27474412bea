"""Encoder: what a client needs of whatever makes the frames of a message."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Protocol

from .container import EncodedFrame
from .resumption import Resumption


class Encoder(Protocol):
    """What makes the frames of one message: `ContainerEncoder`, or `RelayEncoder`.

    Attributes:
        original_bytes, wire_bytes, clipped, digest: as of `ContainerEncoder`.
    """

    @property
    def original_bytes(self) -> int: ...
    @property
    def wire_bytes(self) -> int | None: ...
    @property
    def clipped(self) -> Mapping[str, int]: ...
    @property
    def digest(self) -> str | None: ...

    @property
    def new_buffer(self) -> Callable[[int], memoryview]:
        """Makes a buffer of so many bytes that suits the items."""
        ...

    def resumption(self) -> Resumption:
        """To be fed with what a receiver has, and then given to ``frames``."""
        ...

    def fingerprint(self) -> str:
        """Of everything that the bytes of the message depend on, the same in a later process."""
        ...

    def frames(
        self, acquire: Callable[[], memoryview], threads: int = 1, there: Resumption | None = None
    ) -> Generator[EncodedFrame]:
        """The frames in order, behind what is ``there``; see `ContainerEncoder`."""
        ...
