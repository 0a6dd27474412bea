"""ArrayRecords of Flower as Tensorbus messages, and back.

An encoded record has the names, dtypes and shapes of the plain one. Its Arrays have an ``stype`` of their
own; the bytes of all of them, in the record's order, are the frames of one message.
"""

# flwr is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from tensorbus.codecs import registry
from tensorbus.codecs.bases import Base, ItemBase
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.item import Item
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import ManifestMismatch, UnsupportedContainer

from .frames import Parts, Reader

STYPE = "tensorbus.frames"
PLAIN = "numpy.ndarray"


def is_plain(record: Mapping[str, Array]) -> bool:
    """Whether there is something in it to encode, and nothing but arrays of numpy."""
    return bool(record) and all(array.stype == PLAIN for array in record.values())


def is_encoded(record: Mapping[str, Array]) -> bool:
    """Whether it was made by `encode`."""
    return any(array.stype == STYPE for array in record.values())


def encode(record: Mapping[str, Array], pipeline: Pipeline, context: CodecContext = NO_CONTEXT) -> Coded:
    """A plain record, encoded.

    Raises:
        NonFiniteValues, CodecError, InvalidSpecification: naming the array where it is one.
        MissingBase: the pipeline needs a base that is not in the context.
    """
    parts = Parts("numpy", items_of(record), pipeline, context)
    coded = {
        name: Array(dtype=record[name].dtype, shape=tuple(record[name].shape), stype=STYPE, data=part)
        for name, part in parts
    }
    return Coded(ArrayRecord(coded), parts.digest or "")


def decode(record: Mapping[str, Array], context: CodecContext = NO_CONTEXT) -> Coded:
    """An encoded record, with the values that its arrays stand for.

    Raises:
        FrameError (and its kinds), CodecError: it is damaged, or not all of it is there.
        MissingBase: it is encoded against a base that is not in the context.
    """
    if strange := [name for name, array in record.items() if array.stype != STYPE]:
        raise UnsupportedContainer(
            f"{strange[0]!r} is a {record[strange[0]].stype} in a record that is encoded otherwise"
        )
    reader = Reader(sum(len(array.data) for array in record.values()), context)
    found: dict[str, Array] = {}
    for item in reader.items(array.data for array in record.values()):
        found[item.name] = Array(np.asarray(cast("npt.ArrayLike", item.value)))
    if found.keys() != record.keys():
        raise ManifestMismatch(
            f"the frames hold {len(found)} arrays, and the record has {len(record)} of other names"
        )
    return Coded(ArrayRecord({name: found[name] for name in record}), reader.digest or "")


class Coded:
    """A record that was encoded or decoded, and the digest of the message that it is.

    Attributes:
        record: encoded, or decoded.
    """

    def __init__(self, record: ArrayRecord, digest: str) -> None:
        self.record = record
        self.id = f"message:{digest}"
        self._arrays = dict(record)  # the record is somebody else's from now on

    @cached_property
    def base(self) -> Base:
        """What both ends have of the model, for changes from it; decoded if need be."""
        plain = decode(self._arrays).record if is_encoded(self._arrays) else self._arrays
        return ItemBase(items_of(plain), self.id)


def items_of(record: Mapping[str, Array]) -> Sequence[Item]:
    """The items of a plain record, which read its bytes where they are."""
    return registry.serializer("numpy").items({name: _view(name, array) for name, array in record.items()})


def _view(name: str, array: Array) -> npt.NDArray[Any]:
    """The values of an array within its bytes, which are a file of numpy.

    Raises:
        UnsupportedContainer: they are not, or a file of pickled objects.
    """
    file = BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        flat = np.frombuffer(array.data, dtype, math.prod(shape), file.tell())
    except ValueError as error:
        raise UnsupportedContainer(f"{name!r} is no array of numpy: {error}") from error
    return flat.reshape(shape, order="F" if fortran else "C")
