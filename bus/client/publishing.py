"""Publication: a container on its way to the broker, until it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from tensorbus.bus import messages
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import MessageReplaced, NotFound
from tensorbus.streaming.arriving_relay import ArrivingRelay
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.encoder import Encoder
from tensorbus.streaming.relay import RelayEncoder, RelaySource

from .connection import Connection, segment
from .handing import Handing, encoded, is_small
from .lanes import Lanes
from .outgoing import Outgoing
from .posting import WITHOUT_ASKING, Posting
from .progress import ProgressReporter
from .retry import TRANSIENT
from .uploading import LARGE, Uploading

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker's word that a message is verified and on stable storage.

    Attributes:
        id: the message's, 32 hex digits.
        seq: its position in the broker's log.
        topic, key: as published; the key is the caller's, or one made for this call.
        bytes_on_wire: size of the message body.
        bytes_original: size of the values before quantisation.
        clipped: number of values clipped to the codec's range, by item; only items that had any.
        duplicate: the broker had stored a message under this key before; nothing was stored now, and id, seq,
            bytes_on_wire, frames and digest are the stored message's.
        frames: number of frames of the body.
        digest: SHA-256 over the frames' preludes, in hex.
        resumed: bytes of the body that need not be sent again after a cut, over all attempts.
    """

    id: str
    seq: int
    topic: str
    key: str
    bytes_on_wire: int
    bytes_original: int
    clipped: Mapping[str, int]
    duplicate: bool
    frames: int
    digest: str
    resumed: int = 0


class Publication:
    """One call of `Client.publish`.

    Strategy for feedback: the pass over the residuals begins once, and every attempt encodes with it, so that
    all of them give the same bytes. It is sealed behind the last slice, before the frame that completes the
    message leaves. Only when the broker has stored just these bytes, it is committed.

    Args:
        context: the bases; the pass over the residuals is put in here.
        residuals: of this stream of messages, if the pipeline keeps any.
    """

    def __init__(
        self,
        connection: Connection,
        lanes: Lanes,
        outgoing: Outgoing,
        context: CodecContext,
        residuals: Residuals | None,
        reporter: ProgressReporter,
    ) -> None:
        self._connection = connection
        self._lanes = lanes
        self._outgoing = outgoing
        self._context = context
        self._residuals = residuals
        self._reporter = reporter

    async def run(self) -> Receipt:
        """Send the message until it is acknowledged. Raises as `Client.publish` says."""
        outgoing, residuals = self._outgoing, self._residuals
        context = self._context
        if residuals is not None:
            begun = await self._connection.in_thread(lambda: residuals.begin(outgoing.key))
            context = replace(context, residuals=begun)
        encoder = await self._where_it_belongs(lambda: _encoder(outgoing, context))
        sending = await self._sending(encoder)
        try:
            stored = await self._until_acknowledged(sending)
        except BaseException as error:
            await sending.give_up(error)  # a cancellation too
            raise
        if residuals is not None and stored.digest == encoder.digest:
            await self._connection.in_thread(residuals.commit)
        await self._reporter.finish()
        return self._receipt(stored, encoder, sending)

    async def _where_it_belongs(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which reads the container; what is at hand is read sooner than a thread
        has been asked to."""
        if self._outgoing.at_hand and self._context is NO_CONTEXT and self._residuals is None:
            return work()
        return await self._connection.in_thread(work)

    async def _sending(self, encoder: Encoder) -> Posting | Uploading | Handing:
        outgoing = self._outgoing
        if self._residuals is None and not self._reporter.wanted and is_small(encoder):
            body = await self._where_it_belongs(lambda: encoded(encoder))
            if len(body) <= WITHOUT_ASKING:
                return Handing(self._lanes, outgoing, body)
        if max(encoder.original_bytes, encoder.wire_bytes or 0) < LARGE:
            return Posting(self._connection, outgoing, encoder, self._reporter)
        # Another process has other residuals and other noise, and cannot learn a key that was made up here.
        lasting = self._residuals is None and not outgoing.pipeline.noisy and not outgoing.key_made
        return Uploading(self._connection, outgoing, encoder, self._reporter, lasting=lasting)

    async def _until_acknowledged(self, sending: Posting | Uploading | Handing) -> messages.Receipt:
        attempts = self._connection.attempts(f"publish to {self._outgoing.topic}")
        furthest = 0
        while True:
            try:
                return await sending.attempt()
            except MessageReplaced as error:
                # Another task or process publishes under this key. It has the word as long as it goes on;
                # the next attempt hears of what it stored, or sends if it gave up.
                await self._other_ends()
                await attempts.after(error)
            except TRANSIENT as error:
                if sending.furthest > furthest:
                    furthest = sending.furthest
                    attempts.advanced()
                await attempts.after(error)

    async def _other_ends(self) -> None:
        """Wait as long as the broker is sent a message under this key."""
        path = f"/v1/topics/{segment(self._outgoing.topic)}/receipt"
        with suppress(NotFound, *TRANSIENT):
            await self._connection.call("GET", path, params={"key": self._outgoing.key})

    def _receipt(
        self, stored: messages.Receipt, encoder: Encoder, sending: Posting | Uploading | Handing
    ) -> Receipt:
        return Receipt(
            id=stored.id,
            seq=stored.seq,
            topic=stored.topic,
            key=self._outgoing.key,
            bytes_on_wire=stored.bytes,
            bytes_original=encoder.original_bytes,
            clipped=dict(encoder.clipped),
            # A key made up for this call can only have been stored by this call, its answer lost on the way.
            duplicate=stored.duplicate and not self._outgoing.key_made,
            frames=stored.frames,
            digest=stored.digest,
            resumed=sending.resumed,
        )


def _encoder(outgoing: Outgoing, context: CodecContext) -> Encoder:
    """What is encoded already is copied, whatever the pipeline says."""
    if isinstance(outgoing.source, RelaySource | ArrivingRelay):
        return RelayEncoder(outgoing.source, outgoing.headers)
    return ContainerEncoder(outgoing.source, outgoing.pipeline, outgoing.headers, context=context)
