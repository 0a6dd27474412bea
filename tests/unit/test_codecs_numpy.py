"""Promises of the numpy serializer: every array arrives as it was, and torch is never imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.codecs.registry import serializer, serializer_for
from tensorbus.errors import (
    ManifestMismatch,
    PayloadMismatch,
    UnsupportedContainer,
    UnsupportedDtype,
)

NUMPY_DTYPES = [name for name in DTYPES if name in np.sctypeDict and name != "complex32"]


def carry(container: Any, into: Any = None, step: int = 1000) -> Any:
    """The container taken apart and put together again, ``step`` elements at a time, without frames."""
    items = serializer_for(container).items(container)
    sink = serializer("numpy").sink(into)
    for item in items:
        sink.begin(item.spec)
    for item in items:
        for offset in range(0, 0 if item.spec.view else item.spec.count, step):
            count = min(step, item.spec.count - offset)
            sink.buffer(item.spec, offset, count)[:] = item.read(offset, count)
            sink.commit(item.spec, offset, count)
    return sink.finish()


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Same names in the same order, shapes, dtypes and bits; numpy scalars arrive as 0-d arrays."""
    assert list(before) == list(after)
    for name, value in before.items():
        if hasattr(value, "dtype"):
            native = np.asarray(value).astype(value.dtype.newbyteorder("="))
            assert (native.shape, native.dtype) == (after[name].shape, after[name].dtype), name
            assert native.tobytes() == after[name].tobytes(), name
        else:
            assert (type(value), value) == (type(after[name]), after[name]), name


@settings(max_examples=80, deadline=None)
@given(
    array=st.sampled_from(NUMPY_DTYPES).flatmap(
        lambda name: hypothesis_numpy.arrays(
            st.sampled_from(["<", ">"]).map(lambda order: np.dtype(order + np.dtype(name).str[1:])),
            hypothesis_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        )
    ),
    data=st.data(),
    step=st.integers(1, 50),
)
def test_every_array_arrives(array: Any, data: st.DataObject, step: int) -> None:
    """Any dtype, byte order, shape and basic slicing, reversed and stepped ones too, bit for bit."""
    index = data.draw(hypothesis_numpy.basic_indices(array.shape))
    container = {"array": array[index], "fortran": np.asfortranarray(array), "back": array.T}
    assert_same(container, carry(container, step=step))


def test_scalars_and_bytes_arrive() -> None:
    """Python scalars, bytes and numpy scalars are entries."""
    container = {
        "n": None,
        "b": False,
        "i": 2**64 - 1,
        "f": float("inf"),
        "s": "",
        "y": b"\0",
        "np": np.int8(-3),
    }
    assert_same(container, carry(container))


@pytest.mark.parametrize(
    "name",
    ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"],
)
def test_dtypes_of_ml_dtypes(name: str) -> None:
    """With ml_dtypes installed they arrive bit for bit; without it, they are refused by name."""
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        with pytest.raises(UnsupportedDtype, match=name):
            serializer("numpy").sink().begin(ItemSpec("a", DTYPES[name], (2,)))
        return
    dtype = np.dtype(getattr(ml_dtypes, name))
    array = np.arange(24 * dtype.itemsize, dtype=np.uint8).view(dtype).reshape(4, 6)
    assert_same(
        {"a": array, "t": array.T, "s": array[::-1]}, carry({"a": array, "t": array.T, "s": array[::-1]})
    )


def test_shared_arrays_are_sent_once_and_arrive_shared() -> None:
    """Slices and transposes of an array that is sent have no values of their own."""
    base = np.arange(24, dtype=np.int16).reshape(4, 6)
    container = {
        "t": base.T,
        "base": base,
        "row": base[1:3, ::2],
        "point": base[3, 5, ...],
        "back": base[::-1],
    }
    specs = {item.spec.name: item.spec for item in serializer_for(container).items(container)}
    assert specs["t"].view == View("base", 0, (1, 6))
    assert specs["row"].view == View("base", 6, (6, 2))
    assert specs["back"].view is None
    after = carry(container, step=5)
    assert_same(container, after)
    assert np.shares_memory(after["t"], after["base"])
    after["base"][1, 2] = 99
    assert after["row"][0, 1] == 99


def test_arrays_are_read_where_they_lie() -> None:
    """No copy for arrays in C order, read-only ones included."""
    array = np.arange(10, dtype=np.float32)
    array.flags.writeable = False
    (item,) = serializer_for({"a": array}).items({"a": array})
    assert item.stable
    assert np.shares_memory(np.frombuffer(item.read(2, 3), np.uint8), array)


REFUSED = {
    "object": np.array([object()]),
    "text": np.array(["a"]),
    "date": np.array(["2024-01-01"], "datetime64[D]"),
    "record": np.zeros(2, [("x", "f4")]),
    "void": np.zeros(2, "V16"),
    "long double": np.zeros(2, np.longdouble),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_other_dtypes_are_refused_by_name(case: str) -> None:
    """Objects, texts, dates and records cannot be sent; the error names the entry."""
    with pytest.raises(UnsupportedDtype, match="the bad one"):
        carry({"fine": np.ones(1), "the bad one": REFUSED[case]})


def test_masked_arrays_are_refused() -> None:
    """A mask is never dropped in silence."""
    with pytest.raises(UnsupportedContainer, match="masked"):
        carry({"m": np.ma.masked_array([1, 2], [True, False])})


@pytest.mark.parametrize(
    "container", [[np.ones(2)], np.ones(2), 5, {"a": object()}, {"a": {"b": np.ones(1)}}]
)
def test_other_containers_are_refused(container: object) -> None:
    """What is no mapping of arrays is recognised by nobody."""
    with pytest.raises(UnsupportedContainer):
        serializer_for(container)


def test_into_writes_in_place() -> None:
    """Existing arrays of whatever layout and byte order are overwritten; no array is made."""
    message = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(5, dtype=np.int32), "z": np.float32(7)}
    arrays = {"a": np.zeros((4, 3)).T, "b": np.zeros(5, ">i4"), "z": np.zeros((), np.float32)}
    into = dict(arrays)
    assert carry(message, into=into, step=5) is into
    assert all(into[name] is array for name, array in arrays.items())
    assert into["a"].tolist() == message["a"].tolist()
    assert (into["b"].tolist(), into["z"].item()) == ([0, 1, 2, 3, 4], 7.0)


def test_into_a_strided_owner_copies_a_view() -> None:
    """A view is taken of the owner's elements, not of the memory between them."""
    values = np.arange(6.0)
    into = {"owner": np.zeros(12)[::2], "part": np.zeros(3)}
    assert_same(
        {"owner": values, "part": values[1:4]}, carry({"owner": values, "part": values[1:4]}, into=into)
    )


MISMATCHES: dict[str, dict[str, object]] = {
    "shape": {"a": np.zeros(3)},
    "dtype": {"a": np.zeros(2, np.float32)},
    "missing": {"b": np.zeros(2)},
    "more": {"a": np.zeros(2), "b": np.zeros(2)},
    "numpy scalar": {"a": np.float64(1)},
}


@pytest.mark.parametrize("case", list(MISMATCHES))
def test_into_another_layout_is_refused(case: str) -> None:
    """Another shape or dtype, an item too few or too many: refused by name."""
    with pytest.raises(ManifestMismatch, match=r"'[ab]'"):
        carry({"a": np.ones(2)}, into=MISMATCHES[case])


def test_into_read_only_is_refused() -> None:
    """A read-only array is not written to behind its back."""
    array = np.zeros(2)
    array.flags.writeable = False
    with pytest.raises(ManifestMismatch, match="read-only"):
        carry({"a": np.ones(2)}, into={"a": array})


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x05\x05", b"\x91\x01", b"\xd4\x01\x00", b"\xc4\x01a", b"\xa2x"]
)
def test_scalar_that_is_no_scalar_is_refused(data: bytes) -> None:
    """Bytes that are not exactly one scalar of msgpack never become an object."""
    spec = ItemSpec("s", DTYPES["uint8"], (len(data),), "scalar")
    sink = serializer("numpy").sink()
    sink.begin(spec)
    sink.buffer(spec, 0, len(data))[:] = data
    with pytest.raises(PayloadMismatch, match="'s'"):
        sink.finish()


def test_item_announced_twice_is_refused() -> None:
    """Two items of one name cannot be."""
    sink = serializer("numpy").sink()
    spec = ItemSpec("a", DTYPES["int8"], (1,))
    sink.begin(spec)
    with pytest.raises(ManifestMismatch, match="twice"):
        sink.begin(spec)


def test_neither_torch_nor_bitsandbytes_is_imported() -> None:
    """A client of numpy containers and quantised messages needs numpy alone."""
    program = """
import sys
import numpy as np
import tensorbus.codecs
from tensorbus.codecs.chain import bind
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import QUANTIZERS, serializer_for
container = {"a": np.ones(100, np.float32), "s": 1}
serializer = serializer_for(container)
item = serializer.items(container)[0]
sink = serializer.sink()
sink.begin(item.spec)
for name in QUANTIZERS:
    codec = bind(Pipeline.parse(name), item.spec)
    payload = memoryview(bytearray(codec.encoded_size(100)))
    encoded = codec.encode(item.read(0, 100), 0, payload)
    codec.decode(payload[: encoded.nbytes], 0, sink.buffer(item.spec, 0, 100))
sink.finish()
print(sorted({"torch", "bitsandbytes", "safetensors", "ml_dtypes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
