"""The contracts of the two stages of a pipeline.

A *Serializer* turns a container (a state_dict, a dict of arrays) into Items and back. It copies nothing
that it need not copy, and it imports its framework only when a container of that framework is in play.

A *Quantizer* encodes a flat slice of one Item into a buffer that the caller owns, decodes such a payload in
place, or adds it, weighted, to an accumulator. It keeps no state between slices: each payload decodes on
its own, and a tensor that is encoded in slices cut at multiples of ``blocksize`` gives the same codes as
the tensor encoded whole. All three calls run in worker threads and release the GIL for the bulk of
their work. The configuration of a quantizer is ``config()``; it travels with the data.

Buffers are memoryviews of bytes (format ``B``, contiguous). Values are little-endian.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

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

    blocksize: int = 1
    """Elements; slices are cut at multiples of it, except for the tail of a tensor."""

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
