"""``numpy``: a mapping of names to numpy arrays.

bfloat16 and the 8-bit floats are known if the package ``ml_dtypes`` is installed; their names are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.base import Serializer, Sink
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import Item, ItemSpec, View
from tensorbus.codecs.ranges import blocks
from tensorbus.codecs.sharing import Extent
from tensorbus.errors import ManifestMismatch, UnsupportedContainer, UnsupportedDtype

from .mapping import MappingSink, items_of

Array = npt.NDArray[Any]

_NATIVE = frozenset(
    [
        "float64",
        "float32",
        "float16",
        "complex64",
        "complex128",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    ]
)
_ML_DTYPES = frozenset(
    ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
)


class NumpySerializer(Serializer):
    """Dicts of numpy arrays (of every shape and layout), numpy scalars, Python scalars and bytes.

    A numpy scalar counts as a 0-d array, and an array of the other byte order arrives in the native one.
    """

    name = "numpy"

    @classmethod
    def recognises(cls, container: object) -> bool:
        if not isinstance(container, Mapping):
            return False
        values = list(cast(Mapping[object, object], container).values())
        return not values or any(
            value is None or isinstance(value, (np.ndarray, np.generic, bool, int, float, str, bytes))
            for value in values
        )

    def items(self, container: object) -> Sequence[Item]:
        if not isinstance(container, Mapping):
            raise UnsupportedContainer(
                f"a numpy container is a mapping, not a {type(container).__qualname__}"
            )
        return items_of(cast(Mapping[object, object], container), _ARRAYS)

    def sink(self, into: object | None = None) -> Sink:
        if into is not None and not isinstance(into, Mapping):
            raise UnsupportedContainer(
                f"arrays are loaded into a mapping, not into a {type(into).__qualname__}"
            )
        return MappingSink(_ARRAYS, cast("Mapping[str, object] | None", into))


class NumpyArrays:
    """``Arrays`` for numpy."""

    def owns(self, value: object) -> TypeGuard[Array]:
        return isinstance(value, (np.ndarray, np.generic))

    def spec(self, name: str, array: Array) -> ItemSpec:
        if isinstance(array, np.ma.MaskedArray):
            raise UnsupportedContainer(f"{name!r} is a masked array; send its data and its mask")
        known = array.dtype.name
        if known not in _NATIVE and known not in _ML_DTYPES:
            raise UnsupportedDtype(f"{name!r} has the dtype {array.dtype}, which cannot be sent")
        return ItemSpec(name, DTYPES[known], array.shape)

    def extent(self, spec: ItemSpec, array: Array) -> Extent | None:
        size = array.dtype.itemsize
        if isinstance(array, np.generic) or any(stride < 0 or stride % size for stride in array.strides):
            return None
        strides = tuple(stride // size for stride in array.strides)
        return Extent(
            spec.name, array.dtype.str + array.dtype.name, array.ctypes.data, size, array.shape, strides
        )

    def direct(self, array: Array) -> memoryview | None:
        if isinstance(array, np.generic) or not array.flags.c_contiguous or not array.dtype.isnative:
            return None
        return np.asarray(array).reshape(-1).view(np.uint8).data

    def gather(self, array: Array, offset: int, out: memoryview) -> None:
        target = np.frombuffer(out, array.dtype.newbyteorder("="))
        done = 0
        for block in blocks(array.shape, offset, target.size):
            target[done : done + block.count].reshape(block.shape)[...] = array[block.index]
            done += block.count

    def scatter(self, array: Array, offset: int, data: memoryview) -> None:
        source = np.frombuffer(data, array.dtype.newbyteorder("="))
        done = 0
        for block in blocks(array.shape, offset, source.size):
            array[block.index] = source[done : done + block.count].reshape(block.shape)
            done += block.count

    def device(self, array: Array) -> str | None:
        return None  # numpy knows only this machine's memory, where `direct` and `gather` work

    def on_device(self, array: Array, offset: int, count: int, *, in_place: bool) -> Array | None:
        return None

    def empty(self, spec: ItemSpec) -> Array:
        return np.empty(spec.shape, _numpy_dtype(spec))

    def strided(self, owner: Array, spec: ItemSpec, view: View) -> Array:
        size = owner.dtype.itemsize
        flat = np.ascontiguousarray(owner).reshape(-1).view(np.uint8)
        strides = [stride * size for stride in view.strides]
        return np.ndarray(spec.shape, owner.dtype, flat.data, view.offset * size, strides)

    def assign(self, target: Array, source: Array) -> None:
        np.copyto(target, source)

    def check_writable(self, name: str, array: Array) -> None:
        if isinstance(array, np.generic) or not array.flags.writeable:
            raise ManifestMismatch(f"{name!r} cannot be loaded into: the array is read-only")


_ARRAYS = NumpyArrays()


def _numpy_dtype(spec: ItemSpec) -> np.dtype[Any]:
    name = spec.dtype.name
    if name in _NATIVE:
        return np.dtype(name)
    if name in _ML_DTYPES:
        try:
            ml_dtypes = import_module("ml_dtypes")
        except ImportError:
            raise UnsupportedDtype(
                f"{spec.name!r} is {name}, which numpy lacks; install ml_dtypes, or load the message as torch"
            ) from None
        return np.dtype(cast(type, getattr(ml_dtypes, name)))
    raise UnsupportedDtype(f"{spec.name!r} is {name}, which numpy cannot hold; load the message as torch")
