"""BusUpdate: a message at the broker, as reducers read it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from tensorbus.bus.client import Message
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import NotFound
from tensorbus.streaming.decoder import SliceEvent

from .updates import FoldingInterrupted


class BusUpdate:
    """An `Update` that is downloaded each time it is read.

    Args:
        message: sealed; the client that it comes from has the bases that its values may be decoded with.
    """

    def __init__(self, message: Message) -> None:
        self.message = message

    @property
    def id(self) -> str:
        """Of the message."""
        return self.message.id

    @property
    def manifest(self) -> Sequence[ItemSpec]:
        """Of the message."""
        return self.message.manifest

    def slices(self) -> AsyncGenerator[SliceEvent]:
        """See `Update`."""
        return self._reading(self.message.slices())

    def item_slices(self, name: str) -> AsyncGenerator[SliceEvent]:
        """See `Update`."""
        return self._reading(self.message.item_slices(name))

    async def _reading(self, slices: AsyncGenerator[SliceEvent]) -> AsyncGenerator[SliceEvent]:
        try:
            async with aclosing(slices):
                async for event in slices:
                    yield event
        except NotFound as error:
            raise FoldingInterrupted(f"message {self.message.id} was deleted while it was read") from error
