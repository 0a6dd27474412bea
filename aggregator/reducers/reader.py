"""Reader: one container, read tensor by tensor in an order that it shares with others.

Strategy. A container whose tensors come in the common order is read as one stream, in which what nobody asked
for is passed over. Of any other, each tensor is fetched by its name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from tensorbus.aggregator.updates import Update
from tensorbus.errors import FrameSequenceError
from tensorbus.streaming.decoder import SliceEvent

from .decoded import Decoded


class Reader:
    """Holds one slice, encoded; see `Decoded`.

    Args:
        update: what is read.
        sources: its own names of the tensors, by those that the model has for them.
        wanted: the model's names of those that may be asked for, in the order in which they will be.
        hold: `Decoded.hold_update` or `Decoded.hold_model`.

    Attributes:
        slice: at hand.
    """

    def __init__(
        self,
        update: Update,
        sources: Mapping[str, str],
        wanted: Sequence[str],
        hold: Callable[[Decoded, SliceEvent], None],
    ) -> None:
        self.update = update
        self.slice = Decoded()
        self._sources = sources
        self._hold = hold
        self._in_order = is_in_order([sources[name] for name in wanted if name in sources], update)
        self._stream: AsyncGenerator[SliceEvent] | None = None
        self._name = ""

    async def begin(self, name: str) -> None:
        """The tensor that the model calls ``name`` follows."""
        self._name = self._sources[name]
        self.slice.start = self.slice.stop = 0
        if self._in_order:
            self._stream = self._stream or self.update.slices()
        else:
            await self.aclose()
            self._stream = self.update.item_slices(self._name)

    async def fetch(self) -> None:
        """Get the next slice of the tensor.

        Raises:
            FrameSequenceError: it does not continue the tensor, or there is none.
            What reading raises, see `Update`.
        """
        assert self._stream is not None
        self.slice.release()
        async for event in self._stream:
            if event.spec.name == self._name:
                if event.offset == self.slice.stop and event.count:
                    self._hold(self.slice, event)
                    return
                break
        raise FrameSequenceError(
            f"item {self._name!r} of {self.update.id} does not go on at element {self.slice.stop}"
        )

    async def aclose(self) -> None:
        """Let go of the stream."""
        self.slice.release()
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


def is_in_order(names: Sequence[str], update: Update) -> bool:
    """Whether the container has these of its items in this order."""
    manifest = iter(spec.name for spec in update.manifest)
    return all(name in manifest for name in names)
