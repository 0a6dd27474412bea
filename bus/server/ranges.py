"""Conditional and partial requests (RFC 9110, sections 13 and 14), as pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SINGLE = re.compile(r"bytes=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*")


@dataclass(frozen=True)
class Partial:
    """Bytes ``start`` to ``end`` (exclusive) of a body were asked for."""

    start: int
    end: int


@dataclass(frozen=True)
class Unsatisfiable:
    """The range lies behind the end: 416."""


@dataclass(frozen=True)
class NotModified:
    """The client has this version already: 304."""


@dataclass(frozen=True)
class PreconditionFailed:
    """The client wants another version than there is: 412."""


@dataclass(frozen=True)
class Whole:
    """The whole body."""


Selection = Whole | Partial | Unsatisfiable | NotModified | PreconditionFailed


def select(headers: Mapping[str, str], size: int, etag: str) -> Selection:
    """What of a body of ``size`` bytes with the strong ``etag`` (quoted) to send.

    Several ranges in one request are answered with the whole, as RFC 9110 allows (14.2).
    """
    if "If-Match" in headers and not _matches(headers["If-Match"], etag):
        return PreconditionFailed()
    if "If-None-Match" in headers and _matches(headers["If-None-Match"], etag):
        return NotModified()
    wanted = _SINGLE.fullmatch(headers.get("Range", ""))
    if wanted is None or headers.get("If-Range", etag).strip() != etag:
        return Whole()
    first, last = wanted.groups()
    if first:
        if last and int(last) < int(first):
            return Whole()
        start, end = int(first), min(int(last) + 1, size) if last else size
    elif last:
        start, end = max(size - int(last), 0), size
    else:
        return Whole()
    return Partial(start, end) if start < end else Unsatisfiable()


def _matches(header: str, etag: str) -> bool:
    candidates = [candidate.strip().removeprefix("W/") for candidate in header.split(",")]
    return "*" in candidates or etag in candidates
