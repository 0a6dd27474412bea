"""Extras: scalars and byte strings, which have no mean; those of one update are kept as they came.

They are those of the update that was folded last or, where the order is not to matter, of the one of the
least site and number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.streaming.decoder import SliceEvent

from .result_items import Stored

Key = tuple[str, int]
"""Site and number of an update."""


class Extras:
    """The scalars and byte strings of a round; ``Layout.match`` has limited their sizes.

    Args:
        ordered: the least key wins, and not the last one.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._kept: dict[str, tuple[Key, ItemSpec, bytearray]] = {}
        self._coming: dict[str, tuple[Key, ItemSpec, bytearray]] = {}

    def begin(self, manifest: Sequence[ItemSpec], key: Key) -> None:
        """An update of this manifest follows."""
        self._coming = {
            spec.name: (key, ItemSpec(spec.name, spec.dtype, spec.shape, spec.kind), bytearray(spec.nbytes))
            for spec in manifest
            if spec.kind != "tensor"
        }

    def write(self, event: SliceEvent) -> None:
        """The next slice of it, of an item that is no tensor."""
        value = self._coming[event.spec.name][2]
        value[event.offset : event.offset + len(event.payload)] = event.payload

    def commit(self, keys: dict[str, Key] | None = None) -> None:
        """The update is complete. ``keys`` are those of single items, where they are not the update's."""
        for name, (key, spec, value) in self._coming.items():
            key = (keys or {}).get(name, key)
            if not self._ordered or name not in self._kept or key <= self._kept[name][0]:
                self._kept[name] = key, spec, value
        self._coming = {}

    def clear(self) -> None:
        """Forget every update."""
        self._kept.clear()
        self._coming.clear()

    def keys(self) -> dict[str, Key]:
        """Whose each item is, as far as there are any."""
        return {name: key for name, (key, _, _) in self._kept.items()}

    def item(self, name: str) -> Item:
        """The item as it is kept."""
        _, spec, value = self._kept[name]
        return Stored(spec, np.frombuffer(value, np.uint8))
