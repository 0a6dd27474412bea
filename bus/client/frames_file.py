"""Frames into a file: a message as it came, checked but not decoded."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike

from tensorbus.bus.messages import MessageInfo
from tensorbus.streaming.arriving_relay import ArrivingRelay
from tensorbus.streaming.container import SliceEvent
from tensorbus.streaming.frames import Frame, FrameParser
from tensorbus.streaming.part_file import PartFile
from tensorbus.streaming.sequence import MessageChecker

from .connection import Connection
from .downloads import Download
from .progress import ProgressReporter
from .reading import Reading


async def save_frames(
    connection: Connection,
    info: MessageInfo,
    path: str | PathLike[str],
    reporter: ProgressReporter,
    relay: ArrivingRelay | None = None,
) -> None:
    """See `Message.save_frames`."""
    file = await connection.in_thread(lambda: PartFile(path, info.bytes if info.state == "sealed" else 0))
    if relay is not None:
        relay.begin(file.reader())
    download = Download(connection, info)
    download.parser = _Writing(file)
    over = _FilePass(file, relay)
    await Reading(connection, download, over, reporter, info.wire_bytes, info.original_bytes).run()


class _Writing(FrameParser):
    """Has the bytes that are fed to it written where they belong; after a cut some come again."""

    def __init__(self, file: PartFile) -> None:
        super().__init__(keep_payload=False)
        self._file = file
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        view = memoryview(data).cast("B")
        self._file.write(view, self._position)
        self._position += len(view)
        return super().feed(view)

    def rewind(self) -> int:
        self._position = super().rewind()
        return self._position


class _FilePass:
    """A `Pass` that only checks; the file takes its place when all is there."""

    def __init__(self, file: PartFile, relay: ArrivingRelay | None) -> None:
        self.sinks = True
        self._file = file
        self._relay = relay
        self._checker = MessageChecker()

    @property
    def complete(self) -> bool:
        return self._checker.complete

    def accept(self, frame: Frame) -> SliceEvent | None:
        self._checker.accept(frame)
        if self._relay is not None:
            self._relay.verified(frame)
        return None

    def finish(self) -> object:
        self._checker.finish()
        return self._file.finish()

    def abort(self) -> None:
        self._file.abort()
