"""Reads from the maps of headers and manifests, whose types and sizes nobody has checked yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard, cast

from tensorbus.errors import FrameError, LimitExceeded

from .limits import LARGEST_INTEGER

_DEEPEST = 8


def is_integer(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(source: Mapping[str, object], key: str, limit: int = LARGEST_INTEGER) -> int:
    """A count from 0 to ``limit``.

    Raises:
        FrameError: it is missing, negative or no integer.
        LimitExceeded: it is too large.
    """
    return checked_integer(source.get(key), key, limit)


def optional_integer(source: Mapping[str, object], key: str) -> int | None:
    """A count, or None where it is missing or nil."""
    return None if source.get(key) is None else integer(source, key)


def checked_integer(value: object, key: str, limit: int = LARGEST_INTEGER) -> int:
    """``value`` as a count from 0 to ``limit``; raises as ``integer``."""
    if not is_integer(value) or value < 0:
        raise FrameError(f"{key!r} must be a non-negative integer, found {_short(value)}")
    if value > limit:
        raise LimitExceeded(f"{key!r} is {value}, the limit is {limit}")
    return value


def integers(source: Mapping[str, object], key: str, largest: int, limit: int) -> tuple[int, ...]:
    """At most ``largest`` counts, each up to ``limit``; raises as ``integer``."""
    value = source.get(key)
    if not isinstance(value, list):
        raise FrameError(f"{key!r} must be an array of integers, found {_short(value)}")
    found = cast(list[object], value)
    if len(found) > largest:
        raise LimitExceeded(f"{key!r} has {len(found)} entries, the limit is {largest}")
    return tuple(checked_integer(entry, key, limit) for entry in found)


def text(source: Mapping[str, object], key: str) -> str:
    """A text.

    Raises:
        FrameError: it is missing or of another type.
    """
    value = source.get(key)
    if not isinstance(value, str):
        raise FrameError(f"{key!r} must be text, found {_short(value)}")
    return value


def mapping(source: Mapping[str, object], key: str) -> dict[str, object]:
    """A map with text keys and values that JSON can hold; empty where it is missing.

    Raises:
        FrameError: it is of another type, or holds something that JSON has not.
    """
    value = source.get(key, {})
    if not isinstance(value, dict) or not is_json(cast(object, value)):
        raise FrameError(f"{key!r} must be a map of JSON values, found {_short(cast(object, value))}")
    return cast(dict[str, object], value)


def is_json(value: object, depth: int = 0) -> bool:
    """Whether ``value`` can be written as standard JSON, at most eight deep."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, str):
        return True
    if isinstance(value, dict):
        for key, entry in cast(dict[object, object], value).items():
            if not isinstance(key, str) or not is_json(entry, depth + 1):
                return False
        return True
    if isinstance(value, list):
        return all(is_json(entry, depth + 1) for entry in cast(list[object], value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int)


def _short(value: object) -> str:
    """``value`` for an error message, whatever its size."""
    if value is None:
        return "nothing"
    shown = repr(value) if isinstance(value, (int, float)) else ""
    return f"{type(value).__name__} {shown[:40]}".rstrip()
