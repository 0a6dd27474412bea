"""What a store can do besides, if brokers in several processes share it: one writes what another decides on.

The broker in the lead lends the frames of an upload to another one, which gets the bytes from the publisher
and stores them. Each time it does so a new epoch of that run begins: what a writer of an earlier epoch still
sends can be written over, and cannot take the place of anything.
"""

from __future__ import annotations

from abc import abstractmethod

from .base import FrameFile, RemoteFrames
from .row_store import RowStore
from .runs import RunFile, Runs


class SharedStore(RowStore):
    """A store that several brokers have, of which one leads."""

    @abstractmethod
    def lend(self, message_id: str) -> int:
        """Have another broker write the frames of an upload; the epoch of that, later than all before.

        Raises StorageError.
        """

    @abstractmethod
    def take_back(self, message_id: str, *, drop: bool = False) -> None:
        """Nobody else writes them any more; ``drop``: nobody wants them, either."""

    @abstractmethod
    def borrow(self, epoch: int) -> BorrowedFrames:
        """A way to write the frames of one upload that the broker in the lead has lent."""


class BorrowedFrames:
    """Writes one run of frames in the place of the broker that leads. All methods block.

    Args:
        runs: of this broker, apart from those that it writes for itself.
        epoch: of the writing.
    """

    def __init__(self, runs: Runs, epoch: int) -> None:
        self._runs = runs
        self._epoch = epoch
        self._file: RunFile | None = None

    def renew(self, epoch: int) -> None:
        """It was lent again, and nobody else has had it since."""
        self._epoch = epoch
        if self._file is not None:
            self._file.epoch = epoch

    def create(self, message_id: str) -> FrameFile:
        """An empty run."""
        self._file = self._runs.create(message_id, _nothing, self._epoch)
        return self._file

    def reopen(self, message_id: str, size: int) -> FrameFile:
        """The run, cut to ``size`` bytes. Raises StorageError."""
        self._file = self._runs.reopen(message_id, size, _nothing, self._epoch)
        return self._file

    def open_frames(self, message_id: str, size: int | None) -> RemoteFrames:
        """What is stored of the run, or about to be. Raises StoreDamaged: nothing is."""
        return self._runs.open(message_id, size)

    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would not fit now."""
        self._runs.pieces.check_room(size)

    def forget(self) -> None:
        """What could not be stored shall not be tried again: another one may go on."""
        if self._file is not None:
            self._file.close()
            self._runs.forget(self._file.run)


def _nothing(_run: str) -> None:
    """What is given up is removed by the broker that leads."""
