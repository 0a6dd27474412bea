"""What a store that several brokers share asks of its log: records, in one order for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

Deliver = Callable[[int, bytes], Awaitable[None]]
"""Takes a record and its place in the log, from 1; done when it has been applied."""


class Log(ABC):
    """A log of records. All methods belong to the event loop of the broker."""

    largest: int = 512 << 10
    """Bytes of the largest record."""

    @abstractmethod
    async def start(self, rows: Path) -> None:
        """Take it into use: make it if it is not there, and put the last snapshot at ``rows``, if there is
        one.

        Raises StorageError, StoreVersion.
        """

    @abstractmethod
    async def follow(
        self, after: int, deliver: Deliver, lost: Callable[[str], None], reads: Callable[[str], bool]
    ) -> None:
        """Call ``deliver`` with each record behind ``after``, in order, from now on; return when all that
        were there have been applied. ``lost`` hears that this cannot go on.

        ``reads`` says whether a run is being read here, for other brokers that ask. Raises StorageError.
        """

    @abstractmethod
    async def append(self, record: bytes) -> None:
        """Put a record at the end; returns when it is on stable storage, however long that takes.

        The caller awaits each before the next. Raises StorageError only when the log is closed.
        """

    @abstractmethod
    async def catch_up(self) -> None:
        """Return when all that was in the log at the time of the call has been applied; or when that cannot
        be had in reasonable time."""

    @abstractmethod
    async def keep_short(self, copy: Callable[[Path], int]) -> None:
        """Make a snapshot and forget what it holds of the log, if that is worth it.

        ``copy`` writes the rows to a file and says how far in the log they are; it blocks.
        """

    @abstractmethod
    async def shorten(self, copy: Callable[[Path], int]) -> None:
        """As ``keep_short``, in any case."""

    @abstractmethod
    def check(self) -> None:
        """Raise BrokerUnavailable if nothing can be appended now."""

    def give_up_soon(self) -> None:  # noqa: B027 - what is in this process is always there
        """The broker stops: what cannot be had within a few seconds fails, with StoreUnavailable."""

    async def leader(self) -> str | None:
        """The address at which the broker that leads can be asked; None if there is none that answers."""
        return None

    async def used_elsewhere(self, runs: Sequence[str]) -> set[str]:
        """Which of these runs of frames other brokers are reading."""
        del runs
        return set()

    async def needs(self, runs: Collection[str]) -> set[str]:
        """Which of these runs of frames are the log's own, or may be. Raises StorageError."""
        del runs
        return set()

    async def announce(self, url: str) -> None:  # noqa: B027 - without others nobody asks
        """Answer to those who ask for the leader, from now on."""

    async def tell(self, word: bytes) -> None:  # noqa: B027 - without others nobody listens
        """Say something to the other brokers of the store; those that do not listen never hear it.

        Raises StorageError.
        """

    async def listen(self, heard: Callable[[bytes], None]) -> None:  # noqa: B027 - nobody says anything
        """Call ``heard`` with what brokers say, from now on."""

    async def behind(self) -> int | None:
        """Records that are in the log and have not been applied here; None if that cannot be found out."""
        return 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection to where the log is."""
        return True

    @abstractmethod
    async def close(self) -> None:
        """Nothing more is delivered or appended. Idempotent."""
