"""A flat range of a many-dimensional array, as blocks that can be indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive elements of an array: ``array[index]`` has the shape ``shape`` and ``count`` elements."""

    index: tuple[int | slice, ...]
    shape: tuple[int, ...]
    count: int


def blocks(shape: Sequence[int], offset: int, count: int) -> Iterator[Block]:
    """The blocks that the elements ``offset`` to ``offset + count`` in C order consist of, in order.

    At most two for each dimension: the rest of a row, whole rows, the start of a row.
    """
    return _blocks((), tuple(shape), offset, count)


def _blocks(outer: tuple[int, ...], shape: tuple[int, ...], offset: int, count: int) -> Iterator[Block]:
    if not count:
        return
    if not shape:
        yield Block(outer, (), 1)
        return
    inner = prod(shape[1:])
    row, within = divmod(offset, inner)
    if within:
        head = min(count, inner - within)
        yield from _blocks((*outer, row), shape[1:], within, head)
        row, count = row + 1, count - head
    rows, rest = divmod(count, inner)
    if rows:
        yield Block((*outer, slice(row, row + rows)), (rows, *shape[1:]), rows * inner)
    yield from _blocks((*outer, row + rows), shape[1:], 0, rest)
