"""The header of a safetensors file, parsed and built. No I/O: ``streaming.files`` reads and writes.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length of the header,
the header as JSON, then the values, which its ``data_offsets`` cover without gap or overlap. What the header
says is believed only after it was checked against the size of the file.

A tensor that shares the values of another is not in the file: as ``safetensors.torch.save_model`` does it,
its name is a key of ``__metadata__`` whose value is the name that was kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

from tensorbus.codecs.dtypes import DTYPES, DType
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.codecs.names import check_item_name
from tensorbus.codecs.sharing import contiguous_strides
from tensorbus.errors import CodecError, LimitExceeded, ManifestMismatch, UnsupportedDtype

LENGTH_BYTES = 8
"""Size of the length that a file starts with."""

MAX_HEADER = 100_000_000
"""Bytes; the limit of the format."""

METADATA = "__metadata__"
MAX_DIMENSIONS = 64
ALIGNMENT = 8
"""The header is padded with spaces, so that the values start at a multiple of this."""

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {ours: theirs for theirs, ours in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a file.

    Attributes:
        spec: of the item; with a view if it only names the values of another.
        start: where its values start, in bytes after the header; of the owner's, for a view.
    """

    spec: ItemSpec
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds.

    Attributes:
        entries: in the order of the values; those that share another's values come last.
        metadata: the texts under ``__metadata__``, without the names of shared tensors.
        size: of the header in bytes, its length included; the values start there.
        values: size of all values in bytes.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    size: int
    values: int


def header_length(start: bytes | memoryview, file_size: int) -> int:
    """The length of the JSON header, from the first 8 bytes of a file.

    Raises:
        CodecError: the file is shorter than it says.
        LimitExceeded: the header is larger than the format allows.
    """
    if len(start) < LENGTH_BYTES:
        raise CodecError(f"{file_size} bytes are no safetensors file: it starts with a length of 8 bytes")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise LimitExceeded(
            f"no safetensors file: its header claims {length} bytes, the limit is {MAX_HEADER}"
        )
    if LENGTH_BYTES + length > file_size:
        raise CodecError(
            f"the safetensors file is truncated: a header of {length} bytes in {file_size} bytes"
        )
    return length


def parse_header(header: bytes | memoryview, file_size: int) -> Header:
    """What the JSON header (without its length) says, checked against the size of the whole file.

    Raises:
        CodecError: the header is malformed, or does not cover the file's values exactly, once each.
        InvalidName, UnsupportedDtype: naming the tensor.
    """
    table = _json_object(bytes(header))
    size = LENGTH_BYTES + len(header)
    metadata = _metadata(table.pop(METADATA, None))
    found = sorted((_entry(name, value) for name, value in table.items()), key=lambda one: one[:2])
    position = 0
    for start, end, spec in found:
        if start != position:
            kind = "overlaps the one before" if start < position else "leaves a gap before it"
            raise CodecError(f"tensor {spec.name!r} {kind}: its values start at {start}, not {position}")
        position = end
    if size + position != file_size:
        raise CodecError(f"the header describes a file of {size + position} bytes, but it has {file_size}")
    entries = [Entry(spec, start) for start, _, spec in found]
    aliases, rest = _aliases(entries, metadata)
    return Header((*entries, *aliases), rest, size, position)


def build_header(specs: Iterable[ItemSpec], metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """The first bytes of a file, its length and header, and where the values of each item go.

    Views must be of all values of their owner, in its shape: the format has nothing for the others, so
    whoever writes the file turns them into tensors of their own first.

    Raises:
        UnsupportedDtype: the format lacks a dtype, or an item is a scalar or byte string.
        ManifestMismatch: a view is not the whole of a tensor in the file.
        CodecError: an item is called ``__metadata__``, or the metadata is no Unicode.
        LimitExceeded: the header is larger than the format allows.
    """
    listed = list(specs)
    entries: dict[str, Entry] = {}
    table: dict[str, object] = {}
    position = 0
    # As safetensors itself does: dtypes of larger alignment first, so that every tensor is aligned.
    for spec in sorted((one for one in listed if one.view is None), key=lambda one: -one.dtype.itemsize):
        entries[spec.name] = Entry(spec, position)
        end = position + spec.nbytes
        table[check_item_name(spec.name)] = {
            "dtype": _code(spec),
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    _unicode(metadata)
    texts = dict(metadata)
    for spec in listed:
        if spec.view is not None:
            entries[spec.name] = Entry(spec, _owner(spec, spec.view, entries).start)
            texts[spec.name] = spec.view.of
    if METADATA in table:
        raise CodecError(f"a safetensors file cannot hold a tensor called {METADATA!r}")
    if texts:
        table = {METADATA: texts, **table}
    data = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % ALIGNMENT)
    if len(data) > MAX_HEADER:
        raise LimitExceeded(f"the header of the file takes {len(data)} bytes, the limit is {MAX_HEADER}")
    start = len(data).to_bytes(LENGTH_BYTES, "little") + data
    ordered = tuple(entries[spec.name] for spec in listed)
    return start, Header(ordered, dict(metadata), len(start), position)


def whole_view(spec: ItemSpec, owner: ItemSpec) -> bool:
    """Whether the view ``spec`` is its owner under another name, which is all that the format can say."""
    view = spec.view
    return (
        view is not None
        and (spec.dtype, spec.shape, view.offset) == (owner.dtype, owner.shape, 0)
        and view.strides == contiguous_strides(spec.shape)
    )


def _owner(spec: ItemSpec, view: View, entries: Mapping[str, Entry]) -> Entry:
    owner = entries.get(view.of)
    if owner is None or not whole_view(spec, owner.spec):
        raise ManifestMismatch(
            f"{spec.name!r} is a part of {view.of!r}; safetensors files only hold whole tensors"
        )
    return owner


def _json_object(data: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(data.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the safetensors header is not JSON: {error}") from None
    if not data.startswith(b"{") or not isinstance(value, dict):
        raise CodecError("the safetensors header is no JSON object")
    return cast(dict[str, object], value)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    texts = cast(dict[str, object], value)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CodecError(f"{METADATA} of the safetensors header is no map of texts")
    found = cast(dict[str, str], texts)
    _unicode(found)
    return found


def _unicode(metadata: Mapping[str, str]) -> None:
    """Refuse texts with half of a surrogate pair, which JSON can spell but UTF-8 cannot."""
    try:
        "".join([*metadata, *metadata.values()]).encode()
    except UnicodeEncodeError as error:
        raise CodecError(
            f"the metadata of a safetensors file holds what is no Unicode text: {error}"
        ) from None


def _entry(name: str, value: object) -> tuple[int, int, ItemSpec]:
    """Start and end of the values, and the item."""
    check_item_name(name)
    if not isinstance(value, dict) or {"dtype", "shape", "data_offsets"} != set(
        cast(dict[str, object], value)
    ):
        raise CodecError(f"tensor {name!r} has not the fields dtype, shape and data_offsets")
    fields = cast(dict[str, object], value)
    shape = _counts(name, fields["shape"])
    offsets = _counts(name, fields["data_offsets"])
    dtype = _dtype(name, fields["dtype"])
    if len(shape) > MAX_DIMENSIONS:
        raise LimitExceeded(f"tensor {name!r} has {len(shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise CodecError(f"tensor {name!r}, {dtype} of shape {shape}, cannot lie at {offsets}")
    return offsets[0], offsets[1], ItemSpec(name, dtype, shape)


def _counts(name: str, value: object) -> tuple[int, ...]:
    numbers = cast(list[object], value)
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**63 for one in numbers):
        raise CodecError(f"tensor {name!r} has a shape or offsets that are no list of counts")
    return tuple(cast(list[int], numbers))


def _dtype(name: str, code: object) -> DType:
    if not isinstance(code, str) or code not in _NAMES:
        raise UnsupportedDtype(f"tensor {name!r} has the dtype {code!r:.40}, which is not known")
    return DTYPES[_NAMES[code]]


def _code(spec: ItemSpec) -> str:
    if spec.kind != "tensor" or spec.dtype.name not in _CODES:
        what = str(spec.dtype) if spec.kind == "tensor" else f"a {spec.kind} value"
        raise UnsupportedDtype(f"{spec.name!r} is {what}, which a safetensors file cannot hold")
    return _CODES[spec.dtype.name]


def _aliases(entries: list[Entry], metadata: Mapping[str, str]) -> tuple[list[Entry], dict[str, str]]:
    """The items that the metadata names as others' values, and the metadata that is left."""
    owners = {entry.spec.name: entry for entry in entries}
    aliases: list[Entry] = []
    rest: dict[str, str] = {}
    for name, text in metadata.items():
        owner = owners.get(text)
        if owner is None or name in owners or not owner.spec.count:
            rest[name] = text
            continue
        spec = owner.spec
        view = View(text, 0, contiguous_strides(spec.shape))
        aliases.append(Entry(ItemSpec(check_item_name(name), spec.dtype, spec.shape, view=view), owner.start))
    return aliases, rest
