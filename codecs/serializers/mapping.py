"""A mapping of names to tensors, scalars and byte strings ⇄ Items, whatever the tensors are.

What differs between numpy and torch is behind ``Arrays``; names, views, scalars and the checks of an arriving
container are here.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeGuard, TypeVar

from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import Item, ItemSpec, View
from tensorbus.codecs.memory import ValueBuffer, value_item
from tensorbus.codecs.names import check_item_name
from tensorbus.codecs.sharing import Extent, check_view, find_views
from tensorbus.errors import LimitExceeded, ManifestMismatch, TensorbusError, UnsupportedContainer

T = TypeVar("T")


class Arrays(Protocol[T]):
    """What is asked of an array library."""

    def owns(self, value: object) -> TypeGuard[T]:
        """Whether ``value`` is an array of this library."""
        ...

    def spec(self, name: str, array: T) -> ItemSpec:
        """The item that ``array`` is.

        Raises:
            UnsupportedDtype, UnsupportedContainer: it cannot be sent.
        """
        ...

    def extent(self, spec: ItemSpec, array: T) -> Extent | None:
        """Where it lies in memory; None if it cannot share storage with others."""
        ...

    def direct(self, array: T) -> memoryview | None:
        """The bytes of the elements in C order, if they lie so in this process's memory."""
        ...

    def gather(self, array: T, offset: int, out: memoryview) -> None:
        """Copy the elements from ``offset`` on, in C order, until ``out`` is full."""
        ...

    def scatter(self, array: T, offset: int, data: memoryview) -> None:
        """Overwrite the elements from ``offset`` on, in C order, with those in ``data``."""
        ...

    def device(self, array: T) -> str | None:
        """The device on which codecs can work on its elements; None if it has to come to this memory."""
        ...

    def on_device(self, array: T, offset: int, count: int, *, in_place: bool) -> T | None:
        """The elements ``offset`` to ``offset + count``, in C order, as a flat array on that device.

        ``in_place`` asks for the array's own memory, to overwrite it: None where they do not lie so in it.
        """
        ...

    def empty(self, spec: ItemSpec) -> T:
        """A new array in C order, its values undefined."""
        ...

    def strided(self, owner: T, spec: ItemSpec, view: View) -> T:
        """The array that lies within the elements of ``owner``, taken in C order, as ``view`` says."""
        ...

    def assign(self, target: T, source: T) -> None:
        """Overwrite the values of ``target`` with those of ``source``, which has its shape and dtype."""
        ...

    def check_writable(self, name: str, array: T) -> None:
        """Refuse an array that cannot be overwritten.

        Raises:
            ManifestMismatch: saying why not.
        """
        ...


class Staging:
    """One buffer that grows to the largest slice and is then used again."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, nbytes: int) -> memoryview:
        """``nbytes`` of it; what was taken before is no longer valid."""
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        return memoryview(self._buffer)[:nbytes]


class ArrayItem(Item, Generic[T]):
    """An item that is an array in memory or on a device."""

    concurrent = True

    def __init__(self, spec: ItemSpec, array: T, arrays: Arrays[T], staging: Staging) -> None:
        self.spec = spec
        self._array = array
        self._arrays = arrays
        self._staging = staging
        self._direct = arrays.direct(array)
        self.stable = self._direct is not None
        self.device = arrays.device(array)

    def read(self, offset: int, count: int) -> memoryview:
        size = self.spec.dtype.itemsize
        if self._direct is not None:
            return self._direct[offset * size : (offset + count) * size]
        staged = self._staging.take(count * size)
        self._arrays.gather(self._array, offset, staged)
        return staged

    def read_into(self, offset: int, count: int, out: memoryview) -> None:
        if self._direct is not None:
            super().read_into(offset, count, out)
        else:
            self._arrays.gather(self._array, offset, out)

    def device_slice(self, offset: int, count: int) -> object:
        return self._arrays.on_device(self._array, offset, count, in_place=False)


def items_of(container: Mapping[object, object], arrays: Arrays[T]) -> list[Item]:
    """The items of a mapping in its own order; tensors that share storage become views.

    Raises:
        InvalidName, UnsupportedContainer, UnsupportedDtype: naming the offending entry.
    """
    entries = [(check_item_name(key), value) for key, value in container.items()]
    specs: dict[str, ItemSpec] = {}
    extents: list[Extent] = []
    for name, value in entries:
        if arrays.owns(value):
            specs[name] = spec = arrays.spec(name, value)
            if spec.count and (extent := arrays.extent(spec, value)):
                extents.append(extent)
    views = find_views(extents)
    staging = Staging()
    items: list[Item] = []
    for name, value in entries:
        if name in specs and arrays.owns(value):
            spec = specs[name]
            spec = ItemSpec(name, spec.dtype, spec.shape, view=views.get(name))
            items.append(ArrayItem(spec, value, arrays, staging))
        elif (item := value_item(name, value)) is not None:
            items.append(item)
        else:
            raise UnsupportedContainer(
                f"{name!r} is a {type(value).__module__}.{type(value).__qualname__}; an entry is a tensor, "
                "None, a bool, int, float, text or bytes, and nested containers have to be flattened"
            )
    return items


@dataclass(slots=True)
class _Arriving(Generic[T]):
    spec: ItemSpec
    array: T | None = None
    direct: memoryview | None = None
    value: ValueBuffer | None = None


class MappingSink(Sink, Generic[T]):
    """Makes a dict of arriving items, in their order, or overwrites the arrays of an existing mapping."""

    def __init__(
        self, arrays: Arrays[T], into: Mapping[str, object] | None, result: object | None = None
    ) -> None:
        """``into``: the arrays to overwrite; ``result``: what ``finish`` then returns, if not ``into``."""
        self._arrays = arrays
        self._into = into
        self._result = into if result is None else result
        self._arriving: dict[str, _Arriving[T]] = {}
        self._staging = Staging()

    def begin(self, spec: ItemSpec) -> None:
        if spec.name in self._arriving:
            raise ManifestMismatch(f"the item {spec.name!r} is announced twice")
        if spec.kind != "tensor":
            if self._into is not None and (
                spec.name not in self._into or not isinstance(self._into, MutableMapping)
            ):
                raise ManifestMismatch(f"the container to load into has no place for the value {spec.name!r}")
            self._arriving[spec.name] = _Arriving(spec, value=ValueBuffer(spec))
        elif self._into is not None:
            array = self._existing(spec, self._into)
            self._arriving[spec.name] = _Arriving(spec, array, self._arrays.direct(array))
        elif spec.view is not None:
            self._arriving[spec.name] = _Arriving(spec)
        else:
            array = self._made(spec)
            self._arriving[spec.name] = _Arriving(spec, array, self._arrays.direct(array))

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        arriving = self._arriving[spec.name]
        if arriving.value is not None:
            return arriving.value.bytes_at(offset, count)
        size = spec.dtype.itemsize
        if arriving.direct is not None:
            return arriving.direct[offset * size : (offset + count) * size]
        return self._staging.take(count * size)

    def device_buffer(self, spec: ItemSpec, offset: int, count: int) -> object | None:
        array = self._arriving[spec.name].array
        if array is None or self._arrays.device(array) is None:
            return None
        return self._arrays.on_device(array, offset, count, in_place=True)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        arriving = self._arriving[spec.name]
        if arriving.value is None and arriving.direct is None and arriving.array is not None:
            self._arrays.scatter(arriving.array, offset, self._staging.take(count * spec.dtype.itemsize))

    def finish(self) -> object:
        for arriving in self._arriving.values():
            if arriving.spec.view is not None:
                self._resolve(arriving, arriving.spec.view)
        values = {
            name: arriving.array if arriving.value is None else arriving.value.value()
            for name, arriving in self._arriving.items()
        }
        if self._into is None:
            return values
        if missing := [name for name in self._into if name not in values]:
            raise ManifestMismatch(
                f"the message lacks {len(missing)} items of the container: {missing[0]!r}, ..."
            )
        if isinstance(self._into, MutableMapping):
            self._into.update(
                {name: values[name] for name, one in self._arriving.items() if one.value is not None}
            )
        return self._result

    def abort(self) -> None:
        self._arriving.clear()

    def _made(self, spec: ItemSpec) -> T:
        if spec.nbytes >= 2**63:
            raise LimitExceeded(f"{spec.name!r} claims {spec.nbytes} bytes, more than any memory has")
        try:
            return self._arrays.empty(spec)
        except TensorbusError:
            raise
        except (MemoryError, OverflowError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise LimitExceeded(f"no room for {spec.name!r} of shape {spec.shape}: {reason}") from error

    def _existing(self, spec: ItemSpec, into: Mapping[str, object]) -> T:
        array = into.get(spec.name)
        if not self._arrays.owns(array):
            raise ManifestMismatch(f"the container to load into has no tensor {spec.name!r}")
        found = self._arrays.spec(spec.name, array)
        if (found.dtype, found.shape) != (spec.dtype, spec.shape):
            raise ManifestMismatch(
                f"{spec.name!r} arrives as {spec.dtype} of shape {spec.shape}, but the container to load "
                f"into has {found.dtype} of shape {found.shape}"
            )
        self._arrays.check_writable(spec.name, array)
        return array

    def _resolve(self, arriving: _Arriving[T], view: View) -> None:
        owner = self._arriving.get(view.of)
        if owner is None:
            raise ManifestMismatch(
                f"{arriving.spec.name!r} is a view of {view.of!r}, which is not in the message"
            )
        check_view(arriving.spec, owner.spec)
        assert owner.array is not None, "what is no view has an array"
        source = self._arrays.strided(owner.array, arriving.spec, view)
        if arriving.array is None:
            arriving.array = source
        elif self._arrays.extent(arriving.spec, source) != self._arrays.extent(arriving.spec, arriving.array):
            self._arrays.assign(arriving.array, source)
