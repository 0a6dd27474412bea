"""Entries of a manifest as specifications of items, and back: here the names of dtypes get their meaning."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.errors import TensorbusError

from .entries import Entry, EntryView


def to_spec(entry: Entry) -> ItemSpec:
    """The item that ``entry`` declares.

    Raises:
        UnsupportedDtype: this release does not know its dtype.
    """
    view = View(entry.view.of, entry.view.offset, entry.view.strides) if entry.view else None
    with naming(entry.name):
        return ItemSpec(entry.name, dtype(entry.dtype), entry.shape, entry.kind, dict(entry.codec), view)


def to_entry(spec: ItemSpec) -> Entry:
    """What the manifest says of ``spec``."""
    view = EntryView(spec.view.of, spec.view.offset, spec.view.strides) if spec.view else None
    return Entry(spec.name, spec.dtype.name, spec.shape, spec.kind, spec.codec, view)


@contextmanager
def naming(name: str) -> Generator[None]:
    """Put the item's name into the errors raised within, unless it is there already."""
    try:
        yield
    except TensorbusError as problem:
        if repr(name) in str(problem):
            raise
        raise type(problem)(f"item {name!r}: {problem}") from problem
