"""Working memory of the stages: a few slices of float32 for each thread, made once and used again.

A stage computes on a whole slice, because what stands behind it is given a whole slice; slices of staged
items therefore have at most ``SLICE_ELEMENTS`` elements. Stages behind one another share the memory: what
one stage hands to the next is the next one's to overwrite, unless it was handed over read-only. So a chain
of a delta, a feedback and a rotation takes two slices and not four.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.floats import as_bytes
from tensorbus.codecs.values import convert

Floats = npt.NDArray[np.float32]

SLICE_ELEMENTS = 1 << 19
"""Elements of a slice of a staged item at most: 2 MiB of float32."""


class _Slices(threading.local):
    def __init__(self) -> None:
        self.by_use: dict[str, Floats] = {}


_slices = _Slices()


def working(use: str, count: int) -> Floats:
    """``count`` float32 of uninitialised memory that this thread keeps for ``use``.

    Valid until the same thread asks for the same ``use`` again.
    """
    kept = _slices.by_use.get(use)
    if kept is None or kept.size < count:
        kept = _slices.by_use[use] = np.empty(max(count, min(2 * count, SLICE_ELEMENTS)), np.float32)
    return kept[:count]


def handed_over(source: memoryview, dtype: DType) -> Floats | None:
    """The values in ``source`` if a stage of this thread made them and hands them over, to be overwritten."""
    original = as_bytes(source)
    if source.readonly or dtype.name != "float32" or not _is_working(original):
        return None
    return original.view(np.float32)


def overwritable(source: memoryview, dtype: DType, use: str) -> Floats:
    """The values in ``source`` as float32 in memory that may be overwritten.

    That is ``source`` itself where a stage of this thread made it and hands it over; else ``working(use)``,
    with the values rounded to float32 (a float64 beyond its range becomes Inf).
    """
    ours = handed_over(source, dtype)
    if ours is not None:
        return ours
    original = as_bytes(source)
    values = working(use, original.size // dtype.itemsize)
    if dtype.name == "float32":
        np.copyto(values, original.view(np.float32))
    else:
        convert(original, dtype, values.view(np.uint8), DTYPES["float32"])
    return values


def _is_working(original: npt.NDArray[np.uint8]) -> bool:
    at = original.ctypes.data
    return any(kept.ctypes.data <= at < kept.ctypes.data + kept.nbytes for kept in _slices.by_use.values())
