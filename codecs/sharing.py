"""Which tensors of a container share storage, found from their addresses alone.

A tensor is a view when its elements lie within those of a contiguous tensor of the same dtype: that one
is sent and this one only named, so a tied output head costs nothing and arrives tied. Tensors that merely
overlap, and those of different dtypes over one storage, are sent one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from tensorbus.errors import ManifestMismatch

from .item import ItemSpec, View


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies in memory.

    Attributes:
        name: of the item.
        memory: dtype and device; only tensors with equal ones can share.
        address: of the first element, in bytes.
        itemsize: in bytes.
        shape: in elements; none of the extents is 0.
        strides: in elements; none is negative.
    """

    name: str
    memory: Hashable
    address: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """The address behind the last element."""
        return self.address + self.itemsize * (1 + last_element(self.shape, self.strides))

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        wanted = contiguous_strides(self.shape)
        return all(
            extent == 1 or stride == step
            for extent, stride, step in zip(self.shape, self.strides, wanted, strict=True)
        )


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor in C order."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def last_element(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The distance, in elements, from the first element to the last in memory."""
    return sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def find_views(extents: Iterable[Extent]) -> dict[str, View]:
    """The tensors that need not be sent, by name, and where they lie in one that is."""
    groups: defaultdict[Hashable, list[Extent]] = defaultdict(list)
    for extent in extents:
        groups[extent.memory].append(extent)
    views: dict[str, View] = {}
    for group in groups.values():
        views.update(_views_within(group))
    return views


def _views_within(group: list[Extent]) -> dict[str, View]:
    # From the lowest address on, the longest first: what the last owner does not cover is a new owner, so
    # that the owners' starts and ends both rise, and only the last to start before a tensor can cover it.
    owners: list[Extent] = []
    for extent in sorted(group, key=lambda one: (one.address, -one.end)):
        if extent.contiguous and not (owners and extent.end <= owners[-1].end):
            owners.append(extent)
    starts = [owner.address for owner in owners]
    twins: dict[tuple[object, ...], Extent] = {}
    views: dict[str, View] = {}
    for extent in group:
        owner = owners[at] if (at := bisect_right(starts, extent.address) - 1) >= 0 else None
        if owner is not None and extent.end <= owner.end:
            offset, rest = divmod(extent.address - owner.address, extent.itemsize)
            if extent is not owner and not rest:
                views[extent.name] = View(owner.name, offset, extent.strides)
            continue
        # Not contiguous and not within anything contiguous: it can still be the same as another such tensor.
        twin = twins.setdefault((extent.address, extent.shape, extent.strides), extent)
        if twin is not extent:
            views[extent.name] = View(twin.name, 0, contiguous_strides(extent.shape))
    return views


def check_view(spec: ItemSpec, owner: ItemSpec) -> View:
    """The view of ``spec``, once it is known to lie within ``owner``.

    Raises:
        ManifestMismatch: it does not, or ``owner`` has another dtype or is itself a view.
    """
    view = spec.view
    if view is None or owner.view is not None or spec.kind != "tensor" or owner.kind != "tensor":
        raise ManifestMismatch(
            f"{spec.name!r} cannot be a view of {owner.name!r}, which is sent as no tensor"
        )
    if spec.dtype != owner.dtype:
        raise ManifestMismatch(
            f"{spec.name!r} is {spec.dtype}, but its owner {owner.name!r} is {owner.dtype}"
        )
    if len(view.strides) != len(spec.shape) or view.offset < 0 or any(stride < 0 for stride in view.strides):
        raise ManifestMismatch(f"the view {spec.name!r} has malformed strides or a negative offset")
    if spec.count == 0 or view.offset + last_element(spec.shape, view.strides) >= prod(owner.shape):
        raise ManifestMismatch(f"the view {spec.name!r} reaches beyond {owner.name!r}")
    return view
