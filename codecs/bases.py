"""Base: a container that both ends hold, so that only what differs from it need travel.

A base has an id that says exactly which values it holds: ``sha256:…`` over its tensors, or ``message:…``
with the digest of the message that it was decoded from. Two ends that have the same id have the same bits.

The id of tensors is the SHA-256 of one line for each, sorted by name: the JSON array ``[name, dtype, shape,
digest]`` without spaces, other characters than ASCII escaped, and a line feed. The digest is the SHA-256, in
hex, of the tensor's bytes in C order, little-endian. Tensors that share storage count each as itself, and
scalars and byte strings do not count, so one model has one id, however it is kept.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Protocol, runtime_checkable

import numpy as np

from tensorbus.errors import InvalidSpecification, MissingBase

from .floats import Bytes, as_bytes
from .item import Item, ItemSpec
from .scratch import PIECE, pieces, scratch
from .sharing import contiguous_strides

THREADS = 2
"""Threads that compute an id."""

STEP = 1 << 20
"""Bytes read at a time to compute an id, by each thread."""

_ID = re.compile(r"(sha256|message):[0-9a-f]{64}")


@runtime_checkable
class Base(Protocol):
    """Tensors by name; read from several threads."""

    @property
    def id(self) -> str:
        """``sha256:`` or ``message:``, and 64 hex digits."""
        ...

    def holds(self, spec: ItemSpec) -> bool:
        """Whether it has a tensor of this name, dtype and shape."""
        ...

    def read_into(self, spec: ItemSpec, offset: int, count: int, out: memoryview) -> None:
        """Write the original bytes of elements ``offset`` to ``offset + count`` of that tensor into ``out``.

        Raises:
            MissingBase: it does not hold that tensor.
            StorageError: its file cannot be read.
        """
        ...


class ItemBase:
    """A base made of the items of a container, wherever their values are. They must not change from now on.

    Args:
        items: of the container.
        base_id: where it is known; None computes it, which reads all values.

    Raises:
        InvalidSpecification: ``base_id`` is none.
        StorageError: the values cannot be read.
    """

    def __init__(self, items: Sequence[Item], base_id: str | None = None) -> None:
        self._items = {item.spec.name: item for item in items if item.spec.kind == "tensor"}
        self._id = check_base_id(base_id) or identify(items)
        self._alone = threading.Lock()

    @property
    def id(self) -> str:
        """As `Base.id`."""
        return self._id

    def holds(self, spec: ItemSpec) -> bool:
        """As `Base.holds`."""
        item = self._items.get(spec.name)
        return item is not None and (item.spec.dtype, item.spec.shape) == (spec.dtype, spec.shape)

    def read_into(self, spec: ItemSpec, offset: int, count: int, out: memoryview) -> None:
        """As `Base.read_into`."""
        item = self._item(spec)
        if item.concurrent:
            item.read_into(offset, count, out)
        else:
            with self._alone:
                item.read_into(offset, count, out)

    def lying(self, spec: ItemSpec, offset: int, count: int) -> Bytes | None:
        """The bytes that ``read_into`` would write, where they lie; None if they are not in memory to stay.

        Raises:
            MissingBase: as ``read_into``.
        """
        item = self._item(spec)
        return as_bytes(item.read(offset, count)) if item.stable else None

    def _item(self, spec: ItemSpec) -> Item:
        if not self.holds(spec):
            raise MissingBase(
                f"the base {self._id} has no tensor {spec.name!r} like the one that is asked for"
            )
        return self._items[spec.name]


def identify(items: Sequence[Item]) -> str:
    """The id of the tensors among ``items``, as the module's text says; reads all values, a piece at a time.

    Raises:
        StorageError: the values cannot be read.
    """
    tensors = {item.spec.name: item for item in items if item.spec.kind == "tensor"}
    owners = {name: _owner(item.spec, tensors) for name, item in tensors.items()}
    read = sorted(set(owners.values()), key=lambda name: -tensors[name].spec.nbytes)
    threads = THREADS if all(tensors[name].concurrent for name in read) else 1
    with ThreadPoolExecutor(threads, "tensorbus-base") as pool:
        digests = dict(zip(read, pool.map(_digest, [tensors[name] for name in read]), strict=True))
    whole = sha256()
    for name, item in sorted(tensors.items()):
        line = [name, item.spec.dtype.name, list(item.spec.shape), digests[owners[name]]]
        whole.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


def check_base_id(base_id: object) -> str | None:
    """``base_id``, which must be the id of a base, or None.

    Raises:
        InvalidSpecification: it is neither.
    """
    if base_id is None or (isinstance(base_id, str) and _ID.fullmatch(base_id)):
        return base_id
    raise InvalidSpecification(
        f"{base_id!r:.80} is no id of a base, which is sha256: or message: and 64 lower-case hex digits"
    )


def read_piece(base: Base, spec: ItemSpec, offset: int, count: int) -> Bytes:
    """The original bytes of at most ``PIECE`` elements, where they lie or in a scratch of this thread."""
    if isinstance(base, ItemBase) and (lying := base.lying(spec, offset, count)) is not None:
        return lying
    room = scratch("base", PIECE, np.complex128).view(np.uint8)[: count * spec.dtype.itemsize]
    base.read_into(spec, offset, count, room.data)
    return room


def read_parts(base: Base, spec: ItemSpec, offset: int, count: int) -> Iterator[tuple[int, int, Bytes]]:
    """The original bytes of ``count`` elements as parts (start, stop, bytes): all at once where they lie in
    memory, else piece by piece as `read_piece` gives them.
    """
    if isinstance(base, ItemBase) and (lying := base.lying(spec, offset, count)) is not None:
        yield 0, count, lying
        return
    for start, stop in pieces(count):
        yield start, stop, read_piece(base, spec, offset + start, stop - start)


def keep_apart(base: Base, spec: ItemSpec, offset: int, count: int, out: memoryview) -> None:
    """Refuse to decode a slice into the memory of its own base, which would be another one from then on.

    Raises:
        InvalidSpecification: ``out`` is that memory.
    """
    lying = base.lying(spec, offset, count) if isinstance(base, ItemBase) else None
    if lying is not None and np.may_share_memory(lying, as_bytes(out)):
        raise InvalidSpecification(
            f"{spec.name!r} cannot be loaded into the memory of the base {base.id}, which has to stay as it"
            " is; load it elsewhere, or give the base as a copy or a file"
        )


def _owner(spec: ItemSpec, tensors: dict[str, Item]) -> str:
    """Which tensor has the same bytes in the same order: itself, or what it is the whole of."""
    view = spec.view
    if (
        view is None
        or view.of not in tensors
        or view.offset
        or view.strides != contiguous_strides(spec.shape)
    ):
        return spec.name
    return view.of if tensors[view.of].spec.count == spec.count else spec.name


def _digest(item: Item) -> str:
    digest = sha256()
    step = max(1, STEP // item.spec.dtype.itemsize)
    room = memoryview(b"") if item.stable else memoryview(bytearray(min(STEP, item.spec.nbytes)))
    for offset in range(0, item.spec.count, step):
        count = min(step, item.spec.count - offset)
        if item.stable:
            digest.update(item.read(offset, count))
        else:
            piece = room[: count * item.spec.dtype.itemsize]
            item.read_into(offset, count, piece)
            digest.update(piece)
    return digest.hexdigest()
