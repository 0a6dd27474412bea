"""Folder: reads a message slice by slice into the reducer, in the reducer's own thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from tensorbus.bus.client import Message
from tensorbus.codecs.chain import codec_of
from tensorbus.codecs.item import Item
from tensorbus.errors import MissingBase, NotFound, TensorbusError

from .reducers.mean import Reducer

T = TypeVar("T")


class FoldingInterrupted(TensorbusError):
    """A message that was to be folded can no longer be read; the round is taken up again from the broker."""


class Folder:
    """Folds one message at a time.

    Attributes:
        dirty: whether a message was folded in part; the sums then hold nothing until ``reset``.
    """

    def __init__(self, reducer: Reducer) -> None:
        self.dirty = False
        self._reducer = reducer
        # One thread: the reducer sees one call at a time, and the buffers of the codecs exist once.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorbus-reducer")

    async def fold(
        self, message: Message, weight: float, told: Callable[[int], None], base: str | None = None
    ) -> None:
        """Fold all of ``message``; ``told`` hears the encoded bytes that are in, after each slice.

        Args:
            base: id of the only base that the message may be a change from; None if it has to be whole.

        Raises:
            ManifestMismatch, LimitExceeded: it is of another layout; the sums are as they were.
            MissingBase: it is a change from another base; the sums are as they were.
            CodecError, FrameError, StoreDamaged: it cannot be decoded; the folder is dirty.
            FoldingInterrupted: it was deleted meanwhile.
            BrokerUnavailable, TransferStalled: see the client.
        """
        _check_base(message, base)
        await self._run(partial(self._reducer.begin, message.manifest, weight))
        self.dirty = True
        folded = 0
        try:
            async with aclosing(message.slices()) as slices:
                async for event in slices:
                    await self._run(partial(self._reducer.accumulate, event))
                    folded += len(event.payload)
                    told(folded)
        except NotFound as error:
            raise FoldingInterrupted(f"message {message.id} was deleted while it was folded") from error
        self.dirty = False

    async def reset(self) -> None:
        """Begin a round, or begin it again."""
        await self._run(self._reducer.reset)
        self.dirty = False

    async def result(self, base: Message | None = None) -> Sequence[Item]:
        """The items of the next model, valid until ``reset``.

        Args:
            base: what the folded messages may be changes from; it is read, slice by slice, if any was.

        Raises:
            FoldingInterrupted, BrokerUnavailable, TransferStalled: it cannot be read; fold again.
            MissingBase, CodecError: it cannot be decoded here.
        """
        if await self._run(self._reducer.finish) and base is not None:
            try:
                async with aclosing(base.slices()) as slices:
                    async for event in slices:
                        if event.spec.kind == "tensor":
                            await self._run(partial(self._reducer.add_base, event))
            except NotFound as error:
                raise FoldingInterrupted(f"model {base.id} was deleted while it was read") from error
        return await self._run(self._reducer.result)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _check_base(message: Message, base: str | None) -> None:
    for spec in message.manifest:
        against = codec_of(spec).base if spec.view is None else None
        if against is not None and against != base:
            allowed = "has to be sent whole" if base is None else f"may be a change from {base} only"
            raise MissingBase(f"{spec.name!r} is encoded against {against}; it {allowed}")
