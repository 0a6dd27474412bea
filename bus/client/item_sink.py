"""ItemSink: hands out decoded items one at a time, so that memory holds one item and not the container."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from tensorbus.codecs.base import Sink
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import ManifestMismatch


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """One decoded item.

    Attributes:
        name: within the container.
        spec: its entry of the manifest.
        value: a tensor or array of the publisher's container kind, in the original dtype and shape; a scalar
            or bytes. A new object that nothing else refers to, but for views of it, which share its storage.
    """

    name: str
    spec: ItemSpec
    value: object


class ItemSink(Sink):
    """Gathers each item, with the views that lie in it, in a small container of its own.

    Items come out in the order in which they are complete: that of the manifest, a view right after the item
    in which it lies. ``ready`` holds those that are.

    Args:
        new_sink: makes the sink of one small container, which finishes as a mapping.
    """

    def __init__(self, new_sink: Callable[[], Sink]) -> None:
        self.ready: deque[DecodedItem] = deque()
        self._new_sink = new_sink
        self._waiting: deque[ItemSpec] = deque()
        self._views: dict[str, list[ItemSpec]] = {}
        self._current: Sink | None = None

    def begin(self, spec: ItemSpec) -> None:
        if spec.view is None:
            self._waiting.append(spec)
        else:
            self._views.setdefault(spec.view.of, []).append(spec)

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        return self._sink_of(spec).buffer(spec, offset, count)

    def commit(self, spec: ItemSpec, offset: int, count: int) -> None:
        sink = self._sink_of(spec)
        sink.commit(spec, offset, count)
        if offset + count == spec.count:
            self._waiting.popleft()
            self._finish(spec, sink)

    def finish(self) -> object:
        self._pass_empty()
        if self._views:
            orphan = next(iter(self._views.values()))[0]
            raise ManifestMismatch(f"the view {orphan.name!r} was announced after the item in which it lies")
        return None

    def abort(self) -> None:
        if self._current is not None:
            self._current.abort()

    def _sink_of(self, spec: ItemSpec) -> Sink:
        if self._current is None:
            self._pass_empty()
            self._current = self._begun(spec)
        return self._current

    def _begun(self, spec: ItemSpec) -> Sink:
        sink = self._new_sink()
        for each in (spec, *self._views.get(spec.name, ())):
            sink.begin(each)
        return sink

    def _pass_empty(self) -> None:
        """Items without elements have no slices: they are complete when it is their turn."""
        while self._waiting and self._waiting[0].count == 0:
            spec = self._waiting.popleft()
            self._finish(spec, self._begun(spec))

    def _finish(self, spec: ItemSpec, sink: Sink) -> None:
        self._current = None
        values = cast("Mapping[str, object]", sink.finish())
        for each in (spec, *self._views.pop(spec.name, ())):
            self.ready.append(DecodedItem(each.name, each, values[each.name]))
