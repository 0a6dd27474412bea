"""Promises of the safetensors header: ours read by safetensors, theirs by us, hostile ones by nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.codecs.serializers.safetensors import (
    MAX_HEADER,
    Header,
    build_header,
    header_length,
    parse_header,
)
from tensorbus.errors import (
    CodecError,
    InvalidName,
    LimitExceeded,
    ManifestMismatch,
    TensorbusError,
    UnsupportedDtype,
)

LACKING = ("complex32", "complex128", "float4_e2m1fn_x2")
HELD = [name for name in DTYPES if name not in LACKING]


def parse(table: object, values: int, raw: bytes | None = None) -> Header:
    """The header of a file whose values take ``values`` bytes."""
    data = json.dumps(table).encode() if raw is None else raw
    return parse_header(data, 8 + len(data) + values)


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    """An entry of the table."""
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_our_files_are_read_by_safetensors(tmp_path: Path) -> None:
    """A file of our header and the values at its offsets loads in safetensors, values and metadata."""
    safetensors = pytest.importorskip("safetensors")
    numpy_files = pytest.importorskip("safetensors.numpy")
    arrays = {
        "b": np.arange(6, dtype=np.int8).reshape(2, 3),
        "a": np.arange(3.0),
        "e": np.zeros((0, 4), np.float32),
    }
    specs = [ItemSpec(name, DTYPES[str(array.dtype)], array.shape) for name, array in arrays.items()]
    start, header = build_header(specs, {"format": "np"})
    values = bytearray(header.values)
    for entry in header.entries:
        values[entry.start : entry.start + entry.spec.nbytes] = arrays[entry.spec.name].tobytes()
    (tmp_path / "x.safetensors").write_bytes(start + values)
    loaded = numpy_files.load_file(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in loaded.items()} == {
        n: a.tolist() for n, a in arrays.items()
    }
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "np"}
    assert header.size == len(start)
    assert len(start) % 8 == 0


@pytest.mark.parametrize("dtype", HELD)
def test_their_files_are_read_by_us(dtype: str, tmp_path: Path) -> None:
    """Every dtype that safetensors writes, with its shape and the place of its values."""
    torch = pytest.importorskip("torch")
    torch_files = pytest.importorskip("safetensors.torch")
    raw = torch.arange(24 * DTYPES[dtype].itemsize, dtype=torch.uint8) % 2
    value = raw.view(getattr(torch, dtype)).reshape(2, 3, 4)
    path = tmp_path / "x.safetensors"
    torch_files.save_file({"one": torch.ones(3), "value": value}, path, metadata={"k": "v"})
    data = path.read_bytes()
    length = header_length(data[:8], len(data))
    header = parse_header(data[8 : 8 + length], len(data))
    entry = next(entry for entry in header.entries if entry.spec.name == "value")
    assert (entry.spec.dtype.name, entry.spec.shape) == (dtype, (2, 3, 4))
    assert data[header.size + entry.start :][: entry.spec.nbytes] == raw.numpy().tobytes()
    assert header.metadata == {"k": "v"}


def test_shared_tensors_follow_save_model(tmp_path: Path) -> None:
    """A tied tensor that save_model of safetensors dropped is a view of the one it kept; and back again."""
    torch = pytest.importorskip("torch")
    torch_files = pytest.importorskip("safetensors.torch")
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)}
    )
    model["head"].weight = model["embed"].weight
    torch_files.save_model(model, str(tmp_path / "x.safetensors"))
    data = (tmp_path / "x.safetensors").read_bytes()
    header = parse_header(data[8 : 8 + header_length(data[:8], len(data))], len(data))
    kept, tied = header.entries
    assert tied.spec.view == View(kept.spec.name, 0, (4, 1))
    assert {kept.spec.name, tied.spec.name} == {"embed.weight", "head.weight"}
    start, again = build_header([entry.spec for entry in header.entries], header.metadata)
    (tmp_path / "y.safetensors").write_bytes(start + data[header.size :])
    assert again.values == header.values
    with torch.no_grad():
        model["embed"].weight.zero_()
    torch_files.load_model(model, str(tmp_path / "y.safetensors"))
    assert model["head"].weight.detach().numpy().tobytes() == data[header.size :]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(HELD), st.lists(st.integers(0, 4), max_size=4).map(tuple)), max_size=8
    ),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_is_built_parses_to_the_same(
    shapes: list[tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    """Any items and metadata survive the way through a header, with the same offsets."""
    metadata = {key: value for key, value in metadata.items() if not value.startswith("t")}
    specs = [ItemSpec(f"t{number}", DTYPES[dtype], shape) for number, (dtype, shape) in enumerate(shapes)]
    start, built = build_header(specs, metadata)
    parsed = parse_header(start[8:], len(start) + built.values)
    assert header_length(start[:8], len(start) + built.values) == len(start) - 8
    assert {entry.spec.name: entry for entry in parsed.entries} == {e.spec.name: e for e in built.entries}
    assert (parsed.metadata, parsed.size, parsed.values) == (metadata, built.size, built.values)


HOSTILE: dict[str, tuple[object, int, type[TensorbusError]]] = {
    # case: table, bytes of values, error
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, CodecError),
    "the same twice": ({"a": tensor(0, 8), "b": tensor(0, 8)}, 8, CodecError),
    "gap": ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12, CodecError),
    "gap at the start": ({"a": tensor(4, 8)}, 8, CodecError),
    "file too short": ({"a": tensor(0, 8)}, 7, CodecError),
    "file too long": ({"a": tensor(0, 8)}, 9, CodecError),
    "shape disagrees": ({"a": tensor(0, 8, [3, 3])}, 8, CodecError),
    "dtype disagrees": ({"a": tensor(0, 8, [8], "F32")}, 8, CodecError),
    "backwards": ({"a": tensor(8, 0, [0])}, 8, CodecError),
    "negative": ({"a": tensor(-8, 0)}, 0, CodecError),
    "negative shape": ({"a": tensor(0, 8, [-2, -4])}, 8, CodecError),
    "claims 2**63": ({"a": tensor(0, 2**63)}, 8, CodecError),
    "product overflows": ({"a": tensor(0, 0, [2**32, 2**32, 2**32])}, 0, CodecError),
    "float offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}}, 1, CodecError),
    "bool shape": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1, CodecError),
    "three offsets": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, 1, CodecError),
    "no offsets": ({"a": {"dtype": "U8", "shape": [1]}}, 1, CodecError),
    "more fields": ({"a": tensor(0, 1) | {"more": 1}}, 1, CodecError),
    "no object": ({"a": 5}, 0, CodecError),
    "dimensions": ({"a": tensor(0, 1, [1] * 65)}, 1, LimitExceeded),
    "unknown dtype": ({"a": tensor(0, 8, [8], "F8_E9")}, 8, UnsupportedDtype),
    "dtype no text": ({"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, 1, UnsupportedDtype),
    "name": ({"../a": tensor(0, 1)}, 1, InvalidName),
    "NUL": ({"a\0": tensor(0, 1)}, 1, InvalidName),
    "long name": ({"a" * 10_000: tensor(0, 1)}, 1, InvalidName),
    "metadata": ({"__metadata__": {"k": 1}, "a": tensor(0, 1)}, 1, CodecError),
    "metadata no Unicode": ({"__metadata__": {"k": "\ud800"}, "a": tensor(0, 1)}, 1, CodecError),
    "metadata list": ({"__metadata__": [], "a": tensor(0, 1)}, 1, CodecError),
    "list": ([], 0, CodecError),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_headers_are_refused(case: str) -> None:
    """Overlaps, gaps, lies about sizes and malformed fields are refused before a value is read."""
    table, values, error = HOSTILE[case]
    with pytest.raises(error):
        parse(table, values)


RAW = [
    b"",
    b"{",
    b"\xff\xfe",
    b" {}",
    b'{"a": 1, "a": 2}',
    b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [], "data_offsets": [0, 1]}}',
    b"[" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_headers_that_are_no_json_object_are_refused(raw: bytes) -> None:
    """Malformed, nested too deep, or with a name that occurs twice."""
    with pytest.raises(CodecError):
        parse(None, 0, raw)


def test_lengths_are_checked_before_the_header_is_read() -> None:
    """A length over the limit of the format, or beyond the end of the file, takes no memory."""
    with pytest.raises(LimitExceeded):
        header_length((MAX_HEADER + 1).to_bytes(8, "little"), 2**62)
    with pytest.raises(LimitExceeded):
        header_length(b"\xff" * 8, 100)
    with pytest.raises(CodecError, match="truncated"):
        header_length((93).to_bytes(8, "little"), 100)
    with pytest.raises(CodecError):
        header_length(b"\0" * 7, 7)
    assert header_length((92).to_bytes(8, "little"), 100) == 92


@pytest.mark.parametrize("dtype", LACKING)
def test_dtypes_that_the_format_lacks_are_refused_by_name(dtype: str) -> None:
    """Nothing is converted in silence."""
    with pytest.raises(UnsupportedDtype, match="'odd'"):
        build_header([ItemSpec("odd", DTYPES[dtype], (2,))], {})


def test_what_is_no_tensor_is_refused_by_name() -> None:
    """The format holds tensors only; a scalar, and a view of a part of a tensor, are refused."""
    with pytest.raises(UnsupportedDtype, match="'step'"):
        build_header([ItemSpec("step", DTYPES["uint8"], (1,), "scalar")], {})
    owner = ItemSpec("owner", DTYPES["float32"], (4, 3))
    part = ItemSpec("part", DTYPES["float32"], (3,), view=View("owner", 3, (1,)))
    with pytest.raises(ManifestMismatch, match="'part'"):
        build_header([owner, part], {})
    with pytest.raises(CodecError, match="__metadata__"):
        build_header([ItemSpec("__metadata__", DTYPES["uint8"], (1,))], {})


def test_metadata_that_only_looks_like_sharing_stays_metadata() -> None:
    """A text that names no tensor, or whose key is a tensor itself, is metadata."""
    table = {"__metadata__": {"format": "pt", "a": "b"}, "a": tensor(0, 1), "b": tensor(1, 2)}
    header = parse(table, 2)
    assert header.metadata == {"format": "pt", "a": "b"}
    assert [entry.spec.view for entry in header.entries] == [None, None]
