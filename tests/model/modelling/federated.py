"""Updates of a federation, encoded as sites send them, and read as an aggregator does, without a broker."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.encoded_update import EncodedUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import FindBase, Reducer
from tensorbus.aggregator.updates import Contribution, FoldingInterrupted, Update
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.floats import narrow
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.serializers.numpy import NumpySerializer
from tensorbus.streaming.container import ContainerEncoder, SliceEvent
from tensorbus.streaming.frames import FRAME_BYTES
from tensorbus.streaming.sources import ItemSource

Array = npt.NDArray[Any]
Container = Mapping[str, object]


@dataclass(frozen=True)
class BFloat16:
    """A tensor of bfloat16, which numpy does not have: float32 values that are bfloat16's."""

    values: npt.NDArray[np.float32]


def bfloat16(values: npt.NDArray[np.floating]) -> BFloat16:
    """Values rounded to bfloat16."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    bits = np.empty(flat.size, np.uint16)
    for start in range(0, flat.size, 65536):
        part = flat[start : start + 65536]
        narrow(part, DTYPES["bfloat16"], bits[start : start + part.size].view(np.uint8))
    return BFloat16((bits.astype(np.uint32) << 16).view(np.float32).reshape(np.shape(values)))


def items(container: Container) -> list[Item]:
    """The items of a dict of arrays, `BFloat16`, scalars and byte strings."""
    found: list[Item] = []
    for name, value in container.items():
        if isinstance(value, BFloat16):
            bits = (np.ascontiguousarray(value.values).view(np.uint32) >> 16).astype(np.uint16)
            spec = ItemSpec(name, DTYPES["bfloat16"], value.values.shape)
            found.append(MemoryItem(spec, bits.reshape(-1).view(np.uint8).data))
        else:
            found.extend(NumpySerializer().items({name: value}))
    return found


class HeldBase:
    """A model as a base: what a site keeps of it."""

    def __init__(self, base_id: str, container: Container) -> None:
        self.id = base_id
        self._items = {item.spec.name: item for item in items(container)}

    def holds(self, spec: ItemSpec) -> bool:
        """Whether it has such a tensor."""
        found = self._items.get(spec.name)
        return found is not None and (found.spec.dtype, found.spec.shape) == (spec.dtype, spec.shape)

    def read_into(self, spec: ItemSpec, offset: int, count: int, out: memoryview) -> None:
        """The bytes of these elements."""
        out[:] = self._items[spec.name].read(offset, count).cast("B")


class HeldUpdate(EncodedUpdate):
    """An update in memory that counts how it is read.

    Attributes:
        whole, single: how often all of it was read, and a single item.
        gone: it can no longer be read.
    """

    def __init__(self, update_id: str, body: bytes) -> None:
        super().__init__(body, update_id)
        self.body = body
        self.whole = self.single = 0
        self.gone = False

    async def slices(self) -> AsyncGenerator[SliceEvent]:
        """All of them."""
        self._require()
        self.whole += 1
        async for event in super().slices():
            yield event

    async def item_slices(self, name: str) -> AsyncGenerator[SliceEvent]:
        """Those of one item."""
        self._require()
        self.single += 1
        async for event in super().item_slices(name):
            yield event

    def become(self, body: bytes) -> None:
        """From now on this is what is stored."""
        self.body = self._body = body

    def _require(self) -> None:
        if self.gone:
            raise FoldingInterrupted(f"{self.id} is gone")


def encoded(
    name: str,
    container: Container | Sequence[Item],
    codec: str = "none",
    base: HeldBase | None = None,
    frame_bytes: int = FRAME_BYTES,
) -> HeldUpdate:
    """A message of these items."""
    context = CodecContext({} if base is None else {base.id: base}, base)
    sequence = items(container) if isinstance(container, Mapping) else container
    source = ItemSource("numpy", sequence)
    encoder = ContainerEncoder(source, Pipeline.parse(codec), {}, frame_bytes=frame_bytes, context=context)
    acquire: Callable[[], memoryview] = lambda: memoryview(bytearray(frame_bytes))  # noqa: E731
    body = b"".join(frame.head + bytes(frame.payload) for frame in encoder.frames(acquire))
    return HeldUpdate(name, body)


def base_id(name: str) -> str:
    """What could be the id of a model that is called so."""
    return f"message:{hashlib.sha256(name.encode()).hexdigest()}"


class Federation:
    """Models by their rounds, and updates that were trained from them.

    Attributes:
        updates: what was sent, with what it counts for.
    """

    def __init__(self, current: int = 3) -> None:
        self.current = current
        self.models: dict[int, HeldUpdate] = {}
        self.bases: dict[int, HeldBase] = {}
        self.updates: list[tuple[HeldUpdate, Contribution]] = []

    def model(self, number: int, container: Container) -> HeldUpdate:
        """The model that round ``number`` begins with."""
        self.models[number] = encoded(f"model-{number}", container)
        self.bases[number] = HeldBase(base_id(f"model-{number}"), container)
        return self.models[number]

    def update(
        self,
        site: str,
        container: Container,
        codec: str = "none",
        *,
        number: int | None = None,
        weight: float = 1.0,
        frame_bytes: int = FRAME_BYTES,
    ) -> HeldUpdate:
        """An update that ``site`` trained from the model of round ``number``, mostly the current one."""
        number = self.current if number is None else number
        base = self.bases[number]
        update = encoded(f"{number}-{site}", container, codec, base, frame_bytes)
        told = Contribution(update.id, site, number, weight, base.id, number == self.current)
        self.updates.append((update, told))
        return update

    @property
    def layout(self) -> Layout:
        """Of the current model."""
        return Layout.of(self.models[self.current].manifest)

    @property
    def find_base(self) -> FindBase:
        """As a worker gives it to a reducer."""

        async def find(wanted: str) -> Update:
            for number, base in self.bases.items():
                if base.id == wanted:
                    return self.models[number]
            raise FoldingInterrupted(f"no model {wanted}")

        return find

    async def round(self, reducer: Reducer, order: Sequence[int] | None = None) -> dict[str, Array | bytes]:
        """One round: all updates, in the order given, to the arrays of the next model."""
        await reducer.begin(self.current, self.find_base)
        await reducer.reset()
        for at in range(len(self.updates)) if order is None else order:
            await reducer.add(*self.updates[at], lambda _: None)
        return arrays(await reducer.close(self.models[self.current], self.find_base))


def arrays(made: Sequence[Item], step: int = 100_000) -> dict[str, Array | bytes]:
    """The values of items, read ``step`` elements at a time; bfloat16 comes as float32."""
    found: dict[str, Array | bytes] = {}
    for item in made:
        spec = item.spec
        if spec.view is not None:
            continue
        data = b"".join(
            bytes(item.read(at, min(step, spec.count - at)).cast("B")) for at in range(0, spec.count, step)
        )
        if spec.kind != "tensor":
            found[spec.name] = data
        elif spec.dtype.name == "bfloat16":
            wide = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            found[spec.name] = wide.reshape(spec.shape)
        else:
            found[spec.name] = np.frombuffer(data, np.dtype(spec.dtype.name)).reshape(spec.shape)
    return found
