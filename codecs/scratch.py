"""Working memory of the codecs: a few arrays for each thread, made once and used again.

Fresh memory costs a page fault for every 4 KiB, several times dearer than the arithmetic done on it. The
codecs therefore work on pieces of ``PIECE`` elements that stay in the processor's cache, in arrays that each
thread keeps: about 3 MiB a thread, whatever the size of the tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

PIECE = 65536
"""Elements worked on at a time; a multiple of every block size, and a power of two."""

_ScalarT = TypeVar("_ScalarT", bound=np.generic)


class _Arrays(threading.local):
    def __init__(self) -> None:
        self.by_use: dict[str, npt.NDArray[Any]] = {}


_arrays = _Arrays()


def scratch(use: str, count: int, dtype: type[_ScalarT]) -> npt.NDArray[_ScalarT]:
    """``count`` (at most ``PIECE``) elements of uninitialised memory that this thread keeps for ``use``.

    Valid until the same thread asks for the same ``use`` again; each use has one dtype.
    """
    array = _arrays.by_use.get(use)
    if array is None:
        array = _arrays.by_use[use] = np.empty(PIECE, dtype)
    return array[:count]


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """The bounds (start, stop) of the pieces that ``count`` elements are worked on in."""
    for start in range(0, count, PIECE):
        yield start, min(start + PIECE, count)
