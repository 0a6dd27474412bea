"""The broker's chapter on messages that are there: open ones, sealed ones, and what is in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Concatenate, Literal, ParamSpec, TypeVar

from tensorbus.bus.messages import MessageInfo, MessagePage, State, TopicInfo
from tensorbus.bus.topics import check_filter, check_message_id, matches
from tensorbus.errors import (
    Conflict,
    InvalidRequest,
    MessageAborted,
    NotFound,
    StoreDamaged,
)

from . import frame_index
from .frame_source import FrameSource
from .open_message import OpenMessage, Phase
from .parts import LARGEST_PAGE, Parts
from .readers import Reader

P = ParamSpec("P")
T = TypeVar("T")


class Reading(Parts):
    """Messages that can be looked at, read and deleted."""

    async def message(self, message_id: str) -> MessageInfo:
        """One message, open or sealed. Raises NotFound, StoreDamaged, InvalidName."""
        check_message_id(message_id)
        if (message := self._open.messages.get(message_id)) is not None:
            return message.info
        if (damage := self._store.damaged.get(message_id)) is not None:
            raise StoreDamaged(f"message {message_id} is damaged: {damage}; it cannot be delivered")
        info = await self._store.message(message_id)
        if info is None:
            raise NotFound(f"there is no message {message_id}")
        return info

    async def is_sealed(self, message_id: str) -> bool:
        """Whether it is in the log, whole or damaged. Raises InvalidName."""
        check_message_id(message_id)
        return message_id not in self._open.messages and await self._store.message(message_id) is not None

    async def topic_of(self, message_id: str) -> str:
        """The topic of a message, also of a damaged one. Raises NotFound, InvalidName."""
        check_message_id(message_id)
        if (message := self._open.messages.get(message_id)) is not None:
            return message.topic
        info = await self._store.message(message_id)
        if info is None:
            raise NotFound(f"there is no message {message_id}")
        return info.topic

    async def messages(
        self,
        topic: str = ">",
        state: State = "sealed",
        after: int | None = None,
        limit: int = 100,
        order: Literal["asc", "desc"] = "asc",
        dead: bool = False,
    ) -> MessagePage:
        """A page of messages whose topic matches the filter, by seq (open ones: by begin, all in one page).

        ``after`` is the seq that the listing continues behind, in its order. Damaged messages are left out.
        A page may be shorter than ``limit`` and not be the last one: it ends at a mebibyte of headers.
        With ``dead``, only dead letters. Raises InvalidName, InvalidRequest (limit not 1 to 1000).
        """
        check_filter(topic)
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidRequest(f"a page has 1 to {LARGEST_PAGE} messages, not {limit}")
        if state == "open":
            found = [
                message.info for message in self._open.messages.values() if matches(topic, message.topic)
            ]
            return MessagePage(tuple(found if order == "asc" else found[::-1]), None)
        page, more = await self._store.page(topic, after, limit, order, dead)
        whole = tuple(info for info in page if info.id not in self._store.damaged)
        return MessagePage(whole, page[-1].seq if more else None)

    async def dead_letters(self, topic: str = ">", after: int | None = None, limit: int = 100) -> MessagePage:
        """A page of the dead letters whose topic matches the filter, as ``messages``, oldest first."""
        return await self.messages(topic, after=after, limit=limit, dead=True)

    async def topics(self) -> list[TopicInfo]:
        """Topics that hold sealed messages, by name."""
        return await self._store.topics()

    async def manifest(self, message_id: str) -> list[dict[str, object]]:
        """The manifest's entries as on the wire, read back from the frames; of an open message, those so far.

        Raises NotFound, StoreDamaged.
        """
        return [entry async for part in self.manifest_parts(message_id) for entry in part]

    async def manifest_parts(self, message_id: str) -> AsyncGenerator[list[dict[str, object]]]:
        """As ``manifest``, some entries at a time: no more of it need be held."""
        if self._nothing_yet(message_id):
            return
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            place: frame_index.ManifestPlace | None = frame_index.ManifestPlace()
            while place is not None:
                part, place = await self._indexed(
                    info, frame_index.manifest_part, reader.source, info.bytes, info.items, place
                )
                if part:
                    yield part

    async def item_range(self, message_id: str, name: str) -> tuple[int, int]:
        """First byte and end of the item's slice frames within the body; of a view, those of what it views.

        Raises:
            NotFound: no such message or item. An item without elements has an empty range.
            Conflict: the message is open and the item has not arrived completely.
        """
        if self._nothing_yet(message_id):
            raise Conflict(f"message {message_id} is open, and nothing of it has arrived yet")
        async with await self.open_reader(message_id) as reader:
            info = await self.message(message_id)
            sealed = info.state == "sealed"
            return await self._indexed(
                info, frame_index.item_range, reader.source, info.bytes, info.items, name, sealed
            )

    def _nothing_yet(self, message_id: str) -> bool:
        """Whether it is open and has no whole frame: of a resumable upload that may be so for long."""
        message = self._open.messages.get(message_id)
        return message is not None and not message.visible

    async def _indexed(
        self,
        info: MessageInfo,
        find: Callable[Concatenate[FrameSource, P], T],
        source: FrameSource,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What is found in the heads of a message's frames; raises StoreDamaged when they make no sense."""
        while True:
            try:
                return await self._workers.run(find, source, *args, **kwargs)
            except StoreDamaged as damage:
                if source.doubt():
                    continue
                await self._damaged.put_aside(info.id, str(damage))
                raise StoreDamaged(f"message {info.id} is damaged: {damage}") from damage

    async def open_reader(self, message_id: str, start: int = 0, end: int | None = None) -> Reader:
        """A reader over body bytes ``start`` to ``end`` (exclusive; None is the end of the message).

        It follows an open message frame by frame. Deleting the message does not disturb it.
        Raises NotFound, StoreDamaged, InvalidRequest (a range outside a sealed message).
        """
        info = await self.message(message_id)
        message = self._open.messages.get(message_id)
        size = info.bytes if message is None else None
        last = start if end is None else end
        if not 0 <= start <= last or (size is not None and last > size):
            raise InvalidRequest(f"there is no range {start} to {end} in a message of {size} bytes")
        if message is not None:
            if (upload := self._open.get(message_id)) is not None:
                await upload.touch()
            await self._first_frame(message)
        try:
            source = FrameSource(await self._workers.run(self._store.open_frames, message_id, size))
        except StoreDamaged as damage:
            await self._explain_missing(message_id, message)
            await self._damaged.put_aside(message_id, str(damage))
            raise
        reader = Reader(self._reader_host, message or info, source, start, end)
        if source.body is not None and message is None and start < last:
            # It is small, and whoever has it in memory need not ask again.
            reader.ahead(start)
        return reader

    async def _first_frame(self, message: OpenMessage) -> None:
        """Wait until an open message has a file."""
        while not message.visible:
            if message.phase is Phase.ABORTED:
                raise MessageAborted(message.reason)
            await message.moved.wait(message.moved.version)

    async def _explain_missing(self, message_id: str, message: OpenMessage | None) -> None:
        """The file of a message may be gone because the message is, since a moment ago."""
        if message is not None and message.phase is Phase.ABORTED:
            raise MessageAborted(message.reason)
        await self.message(message_id)

    async def delete(self, message_id: str) -> None:
        """Remove a message and give its space back; an open one is aborted. Raises NotFound."""
        check_message_id(message_id)
        if (upload := self._open.get(message_id)) is not None:
            if upload.message.phase is Phase.OPEN:
                await upload.abort("it was deleted")
                return
            await upload.message.end()
        if not await self._store.delete(message_id):
            raise NotFound(f"there is no message {message_id}")
        self._consumers.dropped(message_id)
