"""Publication: a container on its way to the broker, sent again from the front until it is acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tensorbus.bus import messages
from tensorbus.bus.messages import HeaderValue
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import Residuals
from tensorbus.errors import TensorbusError
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.sources import Source

from .body import Body
from .connection import TRANSIENT, Connection, json_object, segment
from .encoding import Encoding
from .progress import ProgressReporter
from .retry import Retry
from .stall import stalls_after


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


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is to be published.

    ``key_made`` says that the key was made up for this call, so that a retry after a lost answer does not
    store the message twice.
    """

    topic: str
    source: Source
    pipeline: Pipeline
    headers: Mapping[str, HeaderValue]
    key: str
    key_made: bool = False


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
        outgoing: Outgoing,
        context: CodecContext,
        residuals: Residuals | None,
        reporter: ProgressReporter,
    ) -> None:
        self._connection = connection
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
        attempts = Retry(self._connection.settings.retry_for, f"publish to {outgoing.topic}")
        furthest = 0
        encoded: str | None = None
        while True:
            encoder = await self._connection.in_thread(
                lambda: ContainerEncoder(
                    outgoing.source, outgoing.pipeline, outgoing.headers, context=context
                )
            )
            body = Body(
                self._connection, Encoding(encoder, self._connection.settings.threads), self._reporter
            )
            try:
                stored = await self._attempt(body)
            except TRANSIENT as error:
                encoded = encoder.digest or encoded
                if body.sent > furthest:
                    furthest = body.sent
                    attempts.advanced()
                await attempts.after(error)
            else:
                break
        if residuals is not None and stored.digest == (encoder.digest or encoded):
            await self._connection.in_thread(residuals.commit)
        await self._reporter.finish()
        return self._receipt(stored, encoder)

    async def _attempt(self, body: Body) -> messages.Receipt:
        """One upload, from the front."""
        settings = self._connection.settings
        try:
            # Expect: the broker judges topic, key, size and room before the first byte of the body leaves.
            async with (
                stalls_after(settings.idle_timeout, body.position),
                self._connection.request(
                    "POST",
                    f"/v1/topics/{segment(self._outgoing.topic)}/messages",
                    headers={"Idempotency-Key": self._outgoing.key, "Expect": "100-continue"},
                    data=body,
                ) as response,
            ):
                return messages.Receipt.from_json(await json_object(response))
        except TensorbusError:
            # What went wrong on this side comes first: the connection broke because of it.
            if body.failure is not None:
                raise body.failure from None
            raise
        finally:
            await body.settle()

    def _receipt(self, stored: messages.Receipt, encoder: ContainerEncoder) -> Receipt:
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
        )
