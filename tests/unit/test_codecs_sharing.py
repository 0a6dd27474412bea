"""Promises of the search for shared storage: views are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.ranges import blocks
from tensorbus.codecs.sharing import Extent, find_views


def extent(
    name: str, address: int, *shape: int, strides: tuple[int, ...] | None = None, size: int = 4
) -> Extent:
    """A tensor in C order unless strides are given."""
    steps = strides or tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return Extent(name, "float32", address, size, shape, steps)


def test_of_equal_tensors_the_first_is_sent() -> None:
    """The owner is the one that comes first in the container, whichever names there are."""
    views = find_views([extent("b", 64, 10), extent("a", 64, 10), extent("c", 64, 2, 5)])
    assert {name: view.of for name, view in views.items()} == {"a": "b", "c": "b"}


def test_the_covering_tensor_is_sent_wherever_it_stands() -> None:
    """A part listed before the whole is still the view."""
    views = find_views([extent("part", 80, 3), extent("whole", 64, 10), extent("end", 100, 1)])
    assert {name: (view.of, view.offset) for name, view in views.items()} == {
        "part": ("whole", 4),
        "end": ("whole", 9),
    }


def test_partial_overlap_is_no_view() -> None:
    """Tensors that stick out on either side are sent by themselves."""
    assert find_views([extent("a", 0, 10), extent("b", 20, 10), extent("c", 40, 10, strides=(2,))]) == {}


def test_a_view_in_the_overlap_finds_an_owner() -> None:
    """Of two owners that overlap, one that covers the view is taken."""
    views = find_views([extent("a", 0, 10), extent("b", 20, 10), extent("v", 24, 4), extent("w", 4, 2)])
    assert (views["v"].of, views["v"].offset) == ("b", 1)
    assert (views["w"].of, views["w"].offset) == ("a", 1)


def test_misaligned_or_foreign_memory_is_no_view() -> None:
    """An offset that is no whole element, or another device, is not shared."""
    elsewhere = Extent("gpu", "float32 on another device", 64, 4, (2,), (1,))
    assert find_views([extent("a", 64, 10), extent("odd", 66, 2), elsewhere]) == {}


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.integers(0, 30), st.integers(1, 5), st.integers(1, 5), st.integers(0, 6), st.integers(0, 6)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_view_shows_the_elements_of_its_owner(parts: list[tuple[int, int, int, int, int]]) -> None:
    """Whatever lies in one storage: each view's elements, found through its owner, are its own."""
    memory = np.arange(200)
    tensors = {
        str(number): (offset, (rows, columns), (down, right))
        for number, (offset, rows, columns, down, right) in enumerate(parts)
    }
    views = find_views(
        Extent(name, "int64", 8 * offset, 8, shape, strides)
        for name, (offset, shape, strides) in tensors.items()
    )
    for name, view in views.items():
        assert view.of not in views
        owner_offset, owner_shape, owner_strides = tensors[view.of]
        offset, shape, strides = tensors[name]
        owner = _strided(memory[owner_offset:], owner_shape, owner_strides).flatten()
        assert np.array_equal(
            _strided(owner[view.offset :], shape, view.strides), _strided(memory[offset:], shape, strides)
        )


def _strided(
    memory: np.ndarray[tuple[int], np.dtype[np.int64]], shape: tuple[int, ...], strides: tuple[int, ...]
):
    return np.lib.stride_tricks.as_strided(memory, shape, [8 * stride for stride in strides])


@settings(max_examples=200, deadline=None)
@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_blocks_cover_a_range_in_order(shape: list[int], data: st.DataObject) -> None:
    """The blocks of a flat range, one behind the other, are that range, and they are few."""
    array = np.arange(int(np.prod(shape))).reshape(shape)
    offset = data.draw(st.integers(0, array.size))
    count = data.draw(st.integers(0, array.size - offset))
    found = list(blocks(shape, offset, count))
    parts = [np.asarray(array[block.index]).reshape(-1) for block in found]
    assert [(part.size, block.shape) for part, block in zip(parts, found, strict=True)] == [
        (block.count, np.asarray(array[block.index]).shape) for block in found
    ]
    assert [element for part in parts for element in part.tolist()] == list(range(offset, offset + count))
    assert len(found) <= max(1, 2 * len(shape))
