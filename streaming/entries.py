"""Entry: what a manifest says of one item. The names of dtypes and codecs are resolved elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from tensorbus.errors import FrameError, InvalidName, LimitExceeded

from . import fields
from .limits import DEFAULT_LIMITS, LARGEST_INTEGER, FrameLimits

EntryKind = Literal["tensor", "scalar", "bytes"]

NONE_CODEC: Mapping[str, object] = {"name": "none"}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DOT_SEGMENT = re.compile(r"(?:^|[/\\])\.\.?(?:[/\\]|$)")
_DTYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_CODEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class EntryView:
    """The item lies inside the item called ``of``; ``offset`` and ``strides`` count elements of that one."""

    of: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of the manifest, its numbers and names checked.

    Attributes:
        name: unique in the message.
        dtype: name of the original element type; only its spelling has been checked.
        shape: of the original, in elements.
        kind: a tensor, or a scalar (one msgpack value) or byte string, both of which are uint8.
        codec: configuration of the quantizer.
        view: set when the item is part of another; it then has no slices.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: EntryKind = "tensor"
    codec: Mapping[str, object] = field(default_factory=lambda: dict(NONE_CODEC))
    view: EntryView | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def sliced(self) -> int:
        """Number of elements that come in slices: none of a view."""
        return 0 if self.view else self.count

    def to_map(self) -> dict[str, object]:
        """As it stands in the manifest, on the wire and in JSON."""
        entry: dict[str, object] = {"n": self.name, "d": self.dtype, "s": list(self.shape)}
        if self.kind != "tensor":
            entry["k"] = self.kind
        entry["q"] = dict(self.codec)
        if self.view:
            view = self.view
            entry["v"] = {"of": view.of, "o": view.offset, "s": list(view.strides)}
        return entry


def check_item_name(name: str, limits: FrameLimits = DEFAULT_LIMITS) -> str:
    """``name``, which must be 1 to 1024 characters without control characters, and without ``.`` or ``..`` as
    a segment between slashes: an item has a URL, and there such segments would name another one.

    Raises:
        InvalidName: it is not such a name.
    """
    if not name:
        raise InvalidName("an item has no name")
    if len(name) > limits.name:
        shown, length = name[:40], len(name)
        raise InvalidName(f"item name {shown!r}… has {length} characters, the limit is {limits.name}")
    if _CONTROL.search(name):
        raise InvalidName(f"item name {name[:80]!r} holds a control character")
    if _DOT_SEGMENT.search(name):
        raise InvalidName(f"item name {name[:80]!r} holds '.' or '..' as a path does")
    return name


def parse_entry(source: Mapping[str, object], limits: FrameLimits = DEFAULT_LIMITS) -> Entry:
    """The manifest entry in ``source``.

    Raises:
        InvalidName, FrameError, LimitExceeded: naming the item where it has a name.
    """
    name = check_item_name(fields.text(source, "n"), limits)
    try:
        entry = Entry(
            name=name,
            dtype=parse_dtype(source),
            shape=_shape(source, limits),
            kind=_kind(source),
            codec=parse_codec(source),
            view=_view(source, limits),
        )
        _check_kind(entry, limits)
    except FrameError as problem:
        raise FrameError(f"item {name!r}: {problem}") from None
    except LimitExceeded as problem:
        raise LimitExceeded(f"item {name!r}: {problem}") from None
    return entry


def parse_dtype(source: Mapping[str, object]) -> str:
    """The dtype's name, its spelling checked."""
    name = fields.text(source, "d")
    if not _DTYPE.fullmatch(name):
        raise FrameError(f"{name[:40]!r} is not spelled as a dtype")
    return name


def parse_codec(source: Mapping[str, object]) -> dict[str, object]:
    """The codec's configuration: JSON values, with a ``name``."""
    codec = fields.mapping(source, "q")
    name = codec.get("name")
    if not isinstance(name, str) or not _CODEC.fullmatch(name):
        raise FrameError("the codec has no proper name")
    return codec


def _shape(source: Mapping[str, object], limits: FrameLimits) -> tuple[int, ...]:
    shape = fields.integers(source, "s", limits.dims, limits.elements)
    # An extent of 0 makes the product 0 but the strides still have to be representable.
    elements = prod(max(extent, 1) for extent in shape)
    if elements > limits.elements:
        raise LimitExceeded(f"shape {list(shape)} has too many elements, the limit is {limits.elements}")
    return shape


def _kind(source: Mapping[str, object]) -> EntryKind:
    kind = source.get("k", "tensor")
    if kind not in ("tensor", "scalar", "bytes"):
        raise FrameError("its kind is none of tensor, scalar, bytes")
    return kind


def _view(source: Mapping[str, object], limits: FrameLimits) -> EntryView | None:
    if source.get("v") is None:
        return None
    view = fields.mapping(source, "v")
    of = check_item_name(fields.text(view, "of"), limits)
    offset = fields.integer(view, "o", limits.elements)
    return EntryView(of, offset, fields.integers(view, "s", limits.dims, LARGEST_INTEGER))


def _check_kind(entry: Entry, limits: FrameLimits) -> None:
    if entry.kind == "tensor":
        if entry.view and len(entry.view.strides) != len(entry.shape):
            raise FrameError(f"{len(entry.view.strides)} strides for {len(entry.shape)} dimensions")
        return
    if entry.dtype != "uint8" or len(entry.shape) != 1 or entry.view or entry.codec != NONE_CODEC:
        raise FrameError(f"a {entry.kind} is a plain row of uint8, not {entry.dtype} {list(entry.shape)}")
    if entry.kind == "scalar" and entry.count > limits.scalar:
        raise LimitExceeded(f"a scalar of {entry.count} bytes, the limit is {limits.scalar}")
