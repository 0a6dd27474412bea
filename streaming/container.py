"""Containers to frames: what a publisher does. The way back is in ``decoder.py``.

Strategy. All that can be known without reading a value is settled first, by arithmetic: the codec of each
item, how it is cut, and so the exact size of the message. Frames are then made on demand, or a few slices
ahead. Each encoded slice lies in a buffer that was asked for just before, and that belongs to the frame until
its sender gives it back. Values that are sent as they are and lie in memory in order are not copied at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.devices import buffer_maker
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.privacy import SEED_BYTES, Privacy
from tensorbus.errors import LimitExceeded

from .ahead import in_order
from .decoder import ContainerDecoder, SliceEvent
from .entries import parse_entry
from .frames import FRAME_BYTES, PRELUDE, Kind, encode_frame
from .headers import Envelope, HeaderValue
from .limits import DEFAULT_LIMITS
from .packing import pack, pack_array
from .plans import MadeSlice, SliceJob, measure, plan_items
from .resumption import Resumption
from .sources import Source
from .specs import to_entry
from .tally import Tally

__all__ = ["CLOSE_BYTES", "ContainerDecoder", "ContainerEncoder", "EncodedFrame", "SliceEvent"]

_NOTHING = memoryview(b"")
CLOSE_BYTES = len(Tally().close(0, 0, 0))
"""Of the close frame, which has one size."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame to be sent: ``head``, then ``payload``.

    Attributes:
        head: prelude and header.
        payload: bytes; a part of ``buffer``, or of the container itself.
        buffer: what was acquired for it and is to be given back once it is sent; None if nothing was.
        item: name of the item that it is a slice of, or None.
        original_bytes: of that item that it stands for.
    """

    head: bytes
    payload: memoryview = _NOTHING
    buffer: memoryview | None = None
    item: str | None = None
    original_bytes: int = 0

    def __len__(self) -> int:
        return len(self.head) + len(self.payload)


class ContainerEncoder:
    """Makes the frames of one message from the items of a source.

    Args:
        source: what is published; it is read while ``frames`` runs, and closed by the caller.
        pipeline: which codec each item gets.
        headers: the message's headers.
        frame_bytes: size of the largest frame, head and payload.
        context: what the pipeline's stages need: a base, the residuals.

    Attributes:
        entries: the manifest.
        original_bytes: size of the values as they are, those that share storage counted once.
        wire_bytes: exact size of the message; None if a codec's output size depends on the values.
        clipped: number of values clipped so far, by item; complete after the last frame.
        encoded: slices encoded so far, over all calls of ``frames``.
        digest: of the message, in hex, as its receipt has it; None before the last frame is made.
        new_buffer: makes a buffer of so many bytes that suits the items: pinned memory if one lies on a GPU.

    Raises:
        InvalidName, InvalidRequest, LimitExceeded, UnsupportedDtype: a name, header or size is not legal.
        MissingBase, InvalidSpecification: the context lacks what a stage needs.
    """

    def __init__(
        self,
        source: Source,
        pipeline: Pipeline,
        headers: Mapping[str, HeaderValue],
        *,
        frame_bytes: int = FRAME_BYTES,
        context: CodecContext = NO_CONTEXT,
    ) -> None:
        if (limit := pipeline.clip) is not None:
            # What is clipped only has the same bytes in another process, which may go on with its upload.
            context = replace(context, privacy=Privacy(limit, None if pipeline.noisy else bytes(SEED_BYTES)))
        resolved = pipeline.resolved(context)
        self._source = source
        self._pipeline = resolved
        self._context = context
        self._frame_bytes = frame_bytes
        self._clips = resolved.quantizer.clips
        self._counted = 0
        self._clipped: list[tuple[int, str, int]] = []
        self.encoded = 0
        self._plans = plan_items(source, resolved, frame_bytes, context)
        self.entries = [plan.spec for plan in self._plans]
        self.original_bytes = sum(spec.nbytes for spec in self.entries if not spec.view)
        self.clipped: dict[str, int] = {}
        self.digest: str | None = None
        self.new_buffer = buffer_maker(plan.item for plan in self._plans)
        self._manifest = list(_manifest_frames(self.entries, frame_bytes))
        envelope = Envelope(
            headers=headers,
            container=source.kind,
            pipeline=resolved.to_json(),
            metadata=source.metadata,
            items=len(self.entries),
            original_bytes=self.original_bytes,
        )
        self.envelope, self._open_frame = self._sized(envelope)
        self.wire_bytes = self.envelope.wire_bytes

    def resumption(self) -> Resumption:
        """To be fed with what a receiver has, and then given to ``frames``."""
        return Resumption(self._before(), self._plans)

    def fingerprint(self) -> str:
        """Of everything that the bytes of the message depend on, so that a later process can tell whether it
        would send the same: envelope, manifest, and the values, or the identity of the file that they are in.
        Reads all values that are in memory, which takes a fraction of the time that it takes to send them.

        Raises:
            StorageError: of the source.
        """
        found = hashlib.blake2b(digest_size=24)
        for _, head, _ in self._before():
            found.update(head)
        if self._context.privacy is not None:
            found.update(self._context.privacy.fingerprint())
        identity = getattr(self._source, "identity", None)
        if isinstance(identity, str):
            found.update(identity.encode())
        else:
            for plan in self._plans:
                for crc in plan.checksums():
                    found.update(crc.to_bytes(4, "little"))
        return found.hexdigest()

    def frames(
        self, acquire: Callable[[], memoryview], threads: int = 1, there: Resumption | None = None
    ) -> Generator[EncodedFrame]:
        """The frames in order; blocks while it reads and encodes, so it belongs in a worker thread.

        Args:
            acquire: gives a writable buffer of at least ``frame_bytes``; called for each encoded slice. With
                several threads, it is called for up to ``threads`` more before the frame of one is given out.
            threads: that encode; see `ahead`. If there are several, close this when it is given up half-way.
            there: what the receiver has already, used once: only the frames behind it are made. Slices in it
                are not encoded again, unless nobody knows how many of their values were clipped: those that
                an earlier process has sent, with a codec that clips.

        Raises:
            NonFiniteValues, CodecError, StorageError: naming the item.
        """
        there = there or self.resumption()
        self._measure()
        tally = there.tally
        if not there.frames:
            opening = EncodedFrame(self._open_frame)
            tally.add_head(Kind.OPEN, opening.head)
            yield opening
        for frame in self._manifest[max(0, there.frames - 1) :]:
            tally.add_head(Kind.MANIFEST, frame.head, len(frame.payload))
            yield frame
        self._count_clipped(there.slices)
        with closing(in_order(self._jobs(there.slices, None, acquire), threads)) as slices:
            for made in slices:
                self._note(made)
                tally.add_head(Kind.SLICE, made.head, len(made.payload))
                yield EncodedFrame(made.head, made.payload, made.buffer, made.spec.name, made.original_bytes)
        if self._context.residuals is not None:
            # Before the frame that completes the message: from then on it may be stored and acknowledged.
            self._context.residuals.seal()
        self.digest = tally.digest().hex()
        yield EncodedFrame(tally.close(len(self.entries), self.original_bytes, sum(self.clipped.values())))

    def _measure(self) -> None:
        """Find the norm of what is to be clipped, once."""
        privacy = self._context.privacy
        if privacy is not None and not privacy.measured:
            measure(self._plans, self._pipeline, self._context, privacy)

    def _before(self) -> list[tuple[Kind, bytes, int]]:
        """Kind, head and payload bytes of the frames before the slices."""
        manifest = [(Kind.MANIFEST, frame.head, len(frame.payload)) for frame in self._manifest]
        return [(Kind.OPEN, self._open_frame, 0), *manifest]

    def _jobs(self, first: int, end: int | None, acquire: Callable[[], memoryview]) -> Iterator[SliceJob]:
        """The work of the slices from number ``first`` to ``end``."""
        number = 0
        for plan in self._plans:
            count = len(plan.bounds())
            if number + count > first:
                skipped = max(0, first - number)
                room = None if end is None else max(0, end - number - skipped)
                yield from islice(plan.jobs(acquire, skipped), room)
            number += count

    def _note(self, made: MadeSlice) -> None:
        self.encoded += 1
        name = made.spec.name
        if made.clipped:
            self._clipped.append((self._counted, name, made.clipped))
            self.clipped[name] = self.clipped.get(name, 0) + made.clipped
        self._counted += 1

    def _count_clipped(self, slices: int) -> None:
        """Bring ``clipped`` to what it is behind the first ``slices`` slices."""
        self._clipped = [entry for entry in self._clipped if entry[0] < slices]
        self.clipped = {}
        for _, name, count in self._clipped:
            self.clipped[name] = self.clipped.get(name, 0) + count
        if self._counted < slices and self._clips:
            buffer = self.new_buffer(self._frame_bytes)
            with closing(in_order(self._jobs(self._counted, slices, lambda: buffer), 1)) as unknown:
                for made in unknown:
                    self._note(made)
        self._counted = slices

    def _sized(self, envelope: Envelope) -> tuple[Envelope, bytes]:
        """``envelope`` with the size of the message, of which it is itself a part, and its frame."""
        if not all(plan.codec.fixed_size for plan in self._plans):
            return envelope, encode_frame(Kind.OPEN, envelope.to_map())
        rest = sum(len(frame) for frame in self._manifest) + sum(plan.wire_bytes() for plan in self._plans)
        rest += CLOSE_BYTES
        total = rest
        # A larger number may take more bytes to write, never fewer: this settles after two or three steps.
        header = envelope.to_map()
        while True:
            header["wire_bytes"] = total
            size = PRELUDE.size + len(pack(header)) + rest
            if size == total:
                return replace(envelope, wire_bytes=total), encode_frame(Kind.OPEN, header)
            total = size


def _manifest_frames(specs: list[ItemSpec], frame_bytes: int) -> Iterator[EncodedFrame]:
    """The manifest, in as many frames as it takes.

    Raises:
        LimitExceeded: it takes more than a receiver accepts, or an item does.
    """
    # The prelude, the header and the array's own length, generously.
    room = frame_bytes - 64
    first, taken, total = 0, 0, 0
    batch: list[bytes] = []
    for spec in specs:
        entry = to_entry(spec).to_map()
        parse_entry(entry)
        packed = pack(entry)
        total += len(packed)
        if batch and taken + len(packed) > room:
            yield _manifest_frame(first, batch)
            first, taken, batch = first + len(batch), 0, []
        batch.append(packed)
        taken += len(packed)
    if total > DEFAULT_LIMITS.manifest:
        raise LimitExceeded(f"the manifest takes {total} bytes, the limit is {DEFAULT_LIMITS.manifest}")
    if batch:
        yield _manifest_frame(first, batch)


def _manifest_frame(first: int, packed: list[bytes]) -> EncodedFrame:
    payload = pack_array(packed)
    return EncodedFrame(encode_frame(Kind.MANIFEST, {"first": first}, payload), memoryview(payload))
