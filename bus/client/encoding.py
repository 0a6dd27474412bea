"""Encoding: a container becomes a message body, a few frames at a time, in a worker thread.

Strategy. A step of the worker makes one `Chunk`: some small frames joined into one piece, or one large
frame whose payload is sent from where it lies. While the event loop sends a chunk, the worker makes the next
one, and has a few threads encode what comes after. There are as many buffers as that takes and no more,
whatever the size of a message or of a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensorbus.streaming.ahead import buffers_for
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import EncodedFrame
from tensorbus.streaming.encoder import Encoder
from tensorbus.streaming.resumption import Resumption

from .progress import Progress

_NOTHING = memoryview(b"")
JOINED = 64 << 10
"""Bytes; payloads up to this size are copied and sent together, larger ones from where they lie."""
ENOUGH = 256 << 10
"""Bytes; so much of small frames makes a chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next bytes of the body: ``head``, then ``payload``, which is that of ``frame``.

    ``progress`` is true once these bytes have left. ``frame`` is to be given to `Encoding.release` then.
    """

    head: bytearray
    payload: memoryview
    frame: EncodedFrame | None
    progress: Progress


class Encoding:
    """One pass over a container; `step` and `close` are for worker threads, one call at a time.

    Args:
        threads: that encode.
        there: what the broker has already, if it has anything.
        skip: bytes that it has of the frame behind that.
    """

    def __init__(
        self,
        encoder: Encoder,
        threads: int,
        there: Resumption | None = None,
        skip: int = 0,
    ) -> None:
        self._encoder = encoder
        self._pool = BufferPool(buffers_for(threads), make=encoder.new_buffer)
        self._frames = encoder.frames(self._pool.acquire, threads, there)
        self._skip = skip
        self._sent = 0 if there is None else there.bytes
        self._original = 0 if there is None else there.original_bytes
        self._begins = self._sent + skip

    @property
    def size(self) -> int | None:
        """Bytes of the whole body, where they are known beforehand."""
        return self._encoder.wire_bytes

    @property
    def left(self) -> int | None:
        """Bytes that this pass makes, where they are known beforehand."""
        return None if self.size is None else self.size - self._begins

    def step(self) -> Chunk | None:
        """The next chunk; None at the end.

        Raises:
            NonFiniteValues and other CodecErrors, naming the item; OSError of the source.
        """
        head = bytearray()
        item: str | None = None
        for frame in self._frames:
            head += frame.head
            self._sent += len(frame.head) + len(frame.payload)
            self._original += frame.original_bytes
            item = frame.item
            if len(frame.payload) > JOINED:
                return self._chunk(head, frame, item)
            head += frame.payload
            self.release(frame)
            if len(head) >= ENOUGH:
                break
        return self._chunk(head, None, item) if head else None

    def _chunk(self, head: bytearray, frame: EncodedFrame | None, item: str | None) -> Chunk:
        payload = _NOTHING if frame is None else frame.payload
        if self._skip:
            # The frame that the broker has a part of: it is made again, and only the rest of it is sent.
            beyond = max(0, self._skip - len(head))
            del head[: self._skip]
            self._skip = max(0, beyond - len(payload))
            payload = payload[beyond:]
        return Chunk(head, payload, frame, self._progress(item))

    def release(self, frame: EncodedFrame) -> None:
        """The frame has left: its buffer may be used again."""
        if frame.buffer is not None:
            self._pool.release(frame.buffer)

    def close(self) -> None:
        """No more is wanted: when this returns, no thread is at work on the container or the buffers."""
        self._frames.close()

    def _progress(self, item: str | None) -> Progress:
        return Progress(self._sent, self.size, self._original, self._encoder.original_bytes, item)
