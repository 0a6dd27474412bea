"""The contracts of a pipeline's parts.

A *Serializer* turns a container (a state_dict, a dict of arrays) into Items and back. It copies nothing
that it need not copy, and it imports its framework only when a container of that framework is in play.

A *Quantizer* encodes a flat slice of one Item into a buffer that the caller owns, decodes such a payload in
place, or adds it, weighted, to an accumulator. It keeps no state between slices: each payload decodes on
its own, and a tensor that is encoded in slices cut at multiples of ``blocksize`` gives the same codes as
the tensor encoded whole. All three calls run in worker threads and release the GIL for the bulk of
their work. The configuration of a quantizer is ``config()``; it travels with the data.

A *Stage* stands before the quantizer and changes what it sees: the difference from a base that both ends
hold, a rotation, the error of the last time. A stage and the quantizer behind it, bound to one item, are a
*SliceCodec*, which is what frames are made with and decoded with.

Buffers are memoryviews of bytes (format ``B``, contiguous). Values are little-endian.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .context import CodecContext
from .dtypes import DType
from .item import Item, ItemSpec

Accumulator = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What ``Quantizer.encode`` did: payload bytes written, and values clipped to the codec's range."""

    nbytes: int
    clipped: int = 0


class Quantizer(ABC):
    """Encodes flat slices of numbers with fewer bits, and back."""

    name: ClassVar[str]
    """Under which the registry and the wire know it."""

    fixed_size: ClassVar[bool] = True
    """Whether ``encoded_size`` is exact (True) or an upper bound (entropy coders)."""

    exact: ClassVar[bool] = False
    """Whether every value comes back bit for bit."""

    clips: ClassVar[bool] = False
    """Whether values may be clipped to the codec's range, and `Encoded.clipped` be more than 0."""

    primary: ClassVar[str | None] = None
    """The parameter that a text may give without its name: ``bits`` makes ``lloyd:2`` of ``lloyd:bits=2``."""

    blocksize: int = 1
    """Elements; slices are cut at multiples of it, except for the tail of a tensor."""

    grain: int = 0
    """Elements; payloads can be ``cut`` at multiples of it. 0 if they cannot."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """JSON-able configuration, with ``name``; ``registry.quantizer(config)`` rebuilds it."""

    @abstractmethod
    def accepts(self, dtype: DType) -> bool:
        """Whether this quantizer makes tensors of ``dtype`` smaller; others are sent exactly."""

    @abstractmethod
    def encoded_size(self, count: int, dtype: DType) -> int:
        """Bytes of payload for ``count`` elements of ``dtype``."""

    @abstractmethod
    def encode(self, source: memoryview, dtype: DType, out: memoryview) -> Encoded:
        """Encode the elements in ``source`` into ``out``, which has room for ``encoded_size`` bytes.

        Raises:
            NonFiniteValues: a value is NaN or Inf (the caller adds the item's name).
        """

    @abstractmethod
    def decode(self, payload: memoryview, dtype: DType, out: memoryview) -> None:
        """Decode ``payload`` into ``out``, which is exactly the original slice: count × itemsize bytes.

        Raises:
            PayloadMismatch: the payload's size is not what the count demands.
        """

    @abstractmethod
    def accumulate(self, payload: memoryview, dtype: DType, accumulator: Accumulator, weight: float) -> None:
        """``accumulator += weight * decode(payload)``, in cache-sized steps and without a full-size copy.

        ``accumulator`` is the flat slice, one number for each element of the payload.

        Raises:
            PayloadMismatch: as ``decode``.
            NonFiniteValues: the payload holds NaN or Inf; the accumulator is then undefined.
        """

    def cut(self, payload: memoryview, dtype: DType, count: int, start: int, stop: int) -> memoryview:
        """The payload of elements ``start`` to ``stop`` alone, which decode to the same bits as in the whole.

        Only where ``grain`` is not 0. It copies little or nothing, and may share memory with ``payload``.

        Args:
            count: elements of ``payload``.
            start, stop: multiples of ``grain``; ``stop`` may be ``count`` as well.

        Raises:
            PayloadMismatch: the payload is not of so many elements, as far as can be seen here.
        """
        raise TypeError(f"payloads of {self.name} cannot be cut")


class SliceCodec(ABC):
    """The way of one item's values to payloads and back: a quantizer, or a stage before another SliceCodec.

    As a Quantizer, but bound to the item, so it knows dtype and place: ``offset`` is the slice's first
    element in the flat item. Slices are independent, and may be encoded and decoded by several threads.
    """

    dtype: DType
    """Of the values that go in and come out."""

    fixed_size: bool
    """Whether ``encoded_size`` is exact (True) or an upper bound."""

    blocksize: int
    """Elements; slices are cut at multiples of it, except for the tail of a tensor."""

    grain: int = 0
    """Elements; payloads can be ``cut`` at multiples of it. 0 if they cannot."""

    base: str | None = None
    """Id of the base that the values are encoded against, if a stage does so; an empty payload is then legal
    and says that the slice equals the base bit for bit."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """The item's codec as it stands in the manifest: the quantizer's ``config()``, and under ``stages``
        those of the stages that the receiver has to undo, in the order in which they were done."""

    @abstractmethod
    def encoded_size(self, count: int) -> int:
        """Bytes of payload for ``count`` elements, or an upper bound of them."""

    @abstractmethod
    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        """Encode a slice into ``out``. Raises as Quantizer's."""

    @abstractmethod
    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        """Decode a slice into ``out``, which is exactly its original bytes. Raises as Quantizer's."""

    @abstractmethod
    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        """``accumulator += weight * decode(payload)``. Raises as Quantizer's."""

    def cut(self, payload: memoryview, count: int, start: int, stop: int) -> memoryview:
        """As Quantizer's; it is decoded and accumulated with the offset of element ``start``."""
        raise TypeError("payloads of this codec cannot be cut")

    def needs_base(self, payload: memoryview) -> bool:
        """Whether the values of a slice with this payload are the base's, or the base's and a change."""
        return self.base is not None

    def change(self) -> SliceCodec:
        """The same codec, whose values are what was added to the base and not the sum; itself without a base.

        For whoever folds many updates to one base, and adds the base once.
        """
        return self


class Stage(ABC):
    """Changes the values of an item before they are quantised, and undoes it after they were decoded.

    Configuration only; what a stage needs at work (a base, the residuals) comes with the context.
    """

    name: ClassVar[str]
    """Under which the registry and the wire know it."""

    primary: ClassVar[str | None] = None
    """As `Quantizer.primary`."""

    undone: ClassVar[bool] = True
    """Whether the receiver has to undo it, so that it stands in the item's codec."""

    exact: ClassVar[bool] = False
    """Whether it leaves every bit as it is."""

    against_base: ClassVar[bool] = False
    """Whether it needs a base; it then comes first, as only there the values are those that the base has."""

    private: ClassVar[bool] = False
    """Whether no value may get past it: tensors that are kept, or would not get smaller, take it as well, and
    what it cannot work on is refused."""

    follows: ClassVar[str | None] = None
    """Name of the stage that it has to stand right behind; None if any will do."""

    zero_is_base: ClassVar[bool] = False
    """Whether values of zero behind this stage mean those of the base: such slices have an empty payload."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """JSON-able configuration, with ``name``; ``registry.stage(config)`` rebuilds it."""

    @abstractmethod
    def accepts(self, dtype: DType) -> bool:
        """Whether it can work on tensors of ``dtype``; others pass it by."""

    @abstractmethod
    def inner_dtype(self, dtype: DType) -> DType:
        """What the values are behind this stage: float32 for a stage that computes, else ``dtype``."""

    def resolved(self, context: CodecContext) -> Stage:
        """This stage with all that its configuration left to the context, such as the id of the base.

        Raises:
            MissingBase, InvalidSpecification: the context lacks what a publisher needs for this stage.
        """
        return self

    def fits(self, spec: ItemSpec, context: CodecContext) -> bool:
        """Whether a publisher can use it for this item; asked of a resolved stage, besides ``accepts``."""
        return True

    @abstractmethod
    def wrap(self, inner: SliceCodec, spec: ItemSpec, context: CodecContext) -> SliceCodec:
        """This stage before ``inner``, for one item; both ends call it, of a resolved stage.

        ``spec.dtype`` is that of the values as they come to this stage, ``inner.dtype`` what ``inner_dtype``
        makes of it. A base is looked up when it is needed: who only sums what was added to it can do without.
        """


class Sink(ABC):
    """Takes decoded slices and makes a container of them."""

    @abstractmethod
    def begin(self, spec: ItemSpec) -> None:
        """An item is about to arrive; room for it is made now (or its view is noted)."""

    @abstractmethod
    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        """Writable bytes for elements ``offset`` to ``offset + count`` in the original dtype."""

    @abstractmethod
    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        """The buffer given for this slice has been filled."""

    def device_buffer(self, spec: ItemSpec, offset: int, count: int) -> object | None:
        """Where ``buffer`` would only stage these elements on their way to a device: the flat tensor there.

        What is written to it is in its place, and needs no ``commit``. None where ``buffer`` is to be used.
        """
        return None

    @abstractmethod
    def finish(self) -> object:
        """All items are complete: the container."""

    @abstractmethod
    def abort(self) -> None:
        """The message failed half-way; release what was taken."""


class Serializer(ABC):
    """Turns containers of one kind into Items, and decoded slices back into such a container."""

    name: ClassVar[str]
    """The container kind on the wire: ``torch``, ``numpy``, ``safetensors``."""

    @classmethod
    @abstractmethod
    def recognises(cls, container: object) -> bool:
        """Whether ``container`` is of this kind; never imports the framework to find out."""

    @abstractmethod
    def items(self, container: object) -> Sequence[Item]:
        """The container's items in its own order, values unread.

        Raises:
            UnsupportedContainer, UnsupportedDtype, InvalidName: naming the offending entry.
        """

    @abstractmethod
    def sink(self, into: object | None = None) -> Sink:
        """Where decoded slices go: a new container, or ``into``, whose tensors are overwritten in place.

        Raises (from the sink):
            ManifestMismatch: ``into`` lacks an item, or has it with another shape or dtype.
        """
