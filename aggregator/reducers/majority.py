"""Scalars and byte strings of a round: each is what most updates say, as numbers in between make no sense."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.updates import Update
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.memory import MemoryItem
from tensorbus.streaming.decoder import SliceEvent


class Votes:
    """What one update says: a digest of each value, so that it costs no memory to keep."""

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib.blake2b] = {}

    def add(self, event: SliceEvent) -> None:
        """The next slice of a scalar or byte string."""
        self._hashes.setdefault(event.spec.name, hashlib.blake2b(digest_size=16)).update(event.payload)

    def of(self, spec: ItemSpec) -> bytes | None:
        """For which value of this item it is; None if it has no such item."""
        found = self._hashes.get(spec.name)
        return None if found is None else found.digest()


async def elected(
    layout: Layout, updates: Sequence[tuple[Update, Votes]], current: Update
) -> Mapping[str, Item]:
    """The scalars and byte strings of the next model, by name.

    Each is the value that most updates have, of several such values that of the first update to have one; it
    is the round's model's own where no update has the item.

    Args:
        updates: in an order that does not depend on when they came.
    """
    items: dict[str, Item] = {}
    for spec in layout.specs:
        if spec.kind != "tensor":
            votes = Counter(vote for _, cast in updates if (vote := cast.of(spec)) is not None)
            most = max(votes.values(), default=0)
            having = [update for update, cast in updates if votes.get(cast.of(spec) or b"") == most]
            items[spec.name] = await _read(having[0] if most else current, spec.name)
    return items


async def _read(update: Update, name: str) -> Item:
    spec = next(spec for spec in update.manifest if spec.name == name)
    value = bytearray(spec.nbytes)
    if spec.count:
        async with aclosing(update.item_slices(name)) as slices:
            async for event in slices:
                value[event.offset : event.offset + event.count] = event.payload
    return MemoryItem(ItemSpec(name, spec.dtype, spec.shape, spec.kind), memoryview(value))
