"""Commands in bytes: what changes the rows of a store that brokers share, as it stands in their log.

A record is a list of commands by one writer: ``[version, writer, number, [[name, [argument, …]], …]]``,
packed as msgpack. Values of the classes below go by position: to change their fields is to change `VERSION`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.dead import Death
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.policies import PolicyConfig
from tensorbus.errors import StorageError, StoreVersion

from .values import Copy, HandOver, Listing, StoredConsumer, StoredDelivery, StoredPolicy, StoredUpload, Terms

VERSION = 1
"""Of records, and of the rows that they make."""

_CLASSES: tuple[type, ...] = (
    MessageInfo,
    Death,
    ConsumerConfig,
    PolicyConfig,
    StoredDelivery,
    StoredConsumer,
    StoredUpload,
    StoredPolicy,
    Copy,
    HandOver,
    Listing,
    Terms,
)
_CODES: dict[type, int] = {kind: code for code, kind in enumerate(_CLASSES)}


@dataclass(frozen=True, slots=True)
class Command:
    """One change: the name of an operation and its arguments."""

    name: str
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What one writer wants done, in one transaction.

    Attributes:
        writer: whose it is; each process has an id of its own.
        number: counts the writer's records from 1; one that comes twice counts once.
    """

    writer: str
    number: int
    commands: tuple[Command, ...]


def packed(command: Command) -> bytes:
    """A command, to be put into a record. The exact size of what it adds to one."""
    return _pack([command.name, list(command.arguments)])


def record(writer: str, number: int, commands: list[bytes]) -> bytes:
    """A record of packed commands."""
    # An array of four: the head's first byte is that of an array of three. Then the head of the array of
    # commands, which are packed already (https://github.com/msgpack/msgpack/blob/master/spec.md).
    head = _pack([VERSION, writer, number])
    return b"\x94" + head[1:] + b"\xdc" + len(commands).to_bytes(2, "big") + b"".join(commands)


def parse(data: bytes) -> Record:
    """A record as it was. Raises StoreVersion, StorageError: it is another release's, or no record."""
    try:
        document = cast("tuple[object, ...]", _unpack(data))
        version = document[0]
        if version != VERSION:
            raise StoreVersion(
                f"the log was written by another release (format {version}, this one knows {VERSION}); "
                "all brokers of a store must be of one release"
            )
        _, writer, number, commands = cast("tuple[int, str, int, tuple[tuple[str, Any], ...]]", document)
        return Record(writer, number, tuple(Command(name, arguments) for name, arguments in commands))
    except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException) as problem:
        raise StorageError(f"there is something in the log that is no record: {problem}") from problem


# --- values ------------------------------------------------------------------------------------------

_PACK = cast("Callable[..., object]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_UNPACK = cast("Callable[..., object]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _pack(value: object) -> bytes:
    return cast("bytes", _PACK(value, default=_reduced, datetime=True))


def _reduced(value: object) -> object:
    kind: type = type(value)
    if (code := _CODES.get(kind)) is not None:
        return msgpack.ExtType(code, _pack([getattr(value, name) for name in _names(kind)]))
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"{type(value).__name__} has no place in a record")


def _unpack(data: bytes) -> object:
    return _UNPACK(
        data,
        use_list=False,
        timestamp=3,
        ext_hook=_restored,
        strict_map_key=False,
        max_ext_len=len(data),
    )


def _restored(code: int, data: bytes) -> object:
    kind = _CLASSES[code]
    values = cast("tuple[object, ...]", _unpack(data))
    return kind(*values)
