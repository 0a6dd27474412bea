"""What a receiver has of a message already, so that its publisher goes on behind that.

The receiver tells the preludes and headers of the frames that it has, one behind the other. They are compared
with what the encoder would make: envelope and manifest to the bit, of each slice all but its checksum, which
only encoding it would tell. The digest of the message goes on from them. So a message of two halves that do
not belong together is never made by mistake: not of another container, not with other codecs or headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tensorbus.errors import FrameError, FrameSequenceError

from .frames import MAGIC, PRELUDE, VERSION, Kind
from .limits import DEFAULT_LIMITS
from .plans import ItemPlan
from .slicing import slice_header
from .tally import Tally


class Resumption:
    """Takes the heads of the frames that a receiver has, cut anywhere.

    Args:
        heads: of the frames before the slices, as they are made again.
        plans: whose slices follow.

    Attributes:
        tally: of these frames.
        slices: how many of them are slices.
        original_bytes: that these slices stand for.
    """

    def __init__(self, heads: Sequence[tuple[Kind, bytes, int]], plans: Sequence[ItemPlan]) -> None:
        self.tally = Tally()
        self.slices = 0
        self.original_bytes = 0
        self._before = heads
        self._expected = _slices(plans)
        self._head = bytearray()

    @property
    def bytes(self) -> int:
        """Of these frames in all."""
        return self.tally.bytes

    @property
    def frames(self) -> int:
        """How many they are."""
        return self.tally.frames

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the heads.

        Raises:
            FrameError, FrameSequenceError: they are not of the message that is to be sent.
        """
        self._head += data
        at = 0
        while (size := self._size(at)) is not None and at + size <= len(self._head):
            self._compare(bytes(self._head[at : at + size]))
            at += size
        del self._head[:at]

    def finish(self, boundary: int) -> None:
        """There are no more: the frames take ``boundary`` bytes. Raises as ``feed``."""
        if self._head or boundary != self.bytes:
            raise FrameSequenceError(f"the heads are of {self.bytes} bytes, the receiver has {boundary}")

    def _size(self, at: int) -> int | None:
        """Of the head that begins at ``at``; None while its prelude has not come."""
        if len(self._head) < at + PRELUDE.size:
            return None
        magic, version, _, _, header_len, _, _ = PRELUDE.unpack_from(self._head, at)
        if magic != MAGIC or version != VERSION or header_len > DEFAULT_LIMITS.header:
            raise FrameError(f"no frame's head after {self.frames} frames")
        return PRELUDE.size + header_len

    def _compare(self, head: bytes) -> None:
        kind, payload_len = head[5], PRELUDE.unpack_from(head)[5]
        number = self.frames
        if number < len(self._before):
            expected_kind, expected, payload = self._before[number]
            if head != expected:
                raise FrameSequenceError(f"frame {number + 1} is not the one that would be sent")
            self.tally.add_head(expected_kind, head, payload)
            return
        self._compare_slice(head, kind, payload_len)

    def _compare_slice(self, head: bytes, kind: int, payload_len: int) -> None:
        number = self.frames
        plan, offset, count = next(self._expected, (None, 0, 0))
        if plan is None or kind != Kind.SLICE:
            raise FrameSequenceError(f"frame {number + 1} is no slice of the message that would be sent")
        most = plan.codec.encoded_size(count)
        fits = payload_len == most if plan.codec.fixed_size else payload_len <= most
        if head[PRELUDE.size :] != slice_header(plan.index, plan.spec, offset, count) or not fits:
            raise FrameSequenceError(
                f"frame {number + 1} is not the slice of {plan.spec.name!r} from element {offset} on"
            )
        self.tally.add_head(Kind.SLICE, head, payload_len)
        self.slices += 1
        self.original_bytes += count * plan.spec.dtype.itemsize


def _slices(plans: Sequence[ItemPlan]) -> Iterator[tuple[ItemPlan, int, int]]:
    for plan in plans:
        for offset, count in plan.bounds():
            yield plan, offset, count
