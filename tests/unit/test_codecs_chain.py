"""Promises of chains: each item gets the stages that are for it, and the manifest says which they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from tensorbus.codecs.chain import bind, check_base, codec_of
from tensorbus.codecs.context import NO_CONTEXT, CodecContext
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemKind, ItemSpec, View
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.errors import (
    InvalidSpecification,
    ManifestMismatch,
    MissingBase,
    TensorbusError,
    UnknownCodec,
)
from tensorbus.streaming.base_files import open_base

COUNT = 5000
BASE = open_base(
    {
        "w": np.zeros(COUNT, np.float32),
        "h": np.zeros(COUNT, np.float16),
        "i": np.zeros(COUNT, np.int64),
        "short": np.zeros(8, np.float32),
    }
)
DELTA = {"name": "delta", "base": BASE.id}
SAME = {"name": "same", "base": BASE.id}
ROTATE = {"name": "rotate", "blocksize": 1024, "seed": 1}
NF4 = {"name": "nf4", "blocksize": 64}
NONE = {"name": "none"}
ABSENT = "message:" + "0" * 64


def spec(name: str = "w", dtype: str = "float32", count: int = COUNT, kind: ItemKind = "tensor") -> ItemSpec:
    """A flat item."""
    return ItemSpec(name, DTYPES[dtype], (count,), kind)


def described(codec: Mapping[str, object], name: str = "w", dtype: str = "float32") -> ItemSpec:
    """A flat item as a manifest describes it."""
    return replace(spec(name, dtype), codec=dict(codec))


def publisher() -> CodecContext:
    """A context with a base and residuals."""
    return CodecContext(base=BASE, residuals=MemoryResiduals().begin("m"))


def bound(text: str, item: ItemSpec, keep: tuple[str, ...] = ()) -> dict[str, object]:
    """The item's codec as the manifest has it."""
    context = publisher()
    return bind(Pipeline.parse(text, keep).resolved(context), item, context).config()


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("nf4", spec(), NF4),
        ("delta | nf4", spec(), {**NF4, "stages": [DELTA]}),
        ("delta | feedback | nf4", spec(), {**NF4, "stages": [DELTA]}),
        ("feedback | nf4", spec(), NF4),
        ("delta | feedback | rotate | nf4", spec(), {**NF4, "stages": [DELTA, ROTATE]}),
        ("same | rotate | nf4", spec(), {**NF4, "stages": [SAME, ROTATE]}),
        # What a base does not hold goes without it, whatever differs.
        ("delta | rotate | nf4", spec("other"), {**NF4, "stages": [ROTATE]}),
        ("delta | nf4", spec(dtype="float64"), NF4),
        ("delta | nf4", replace(spec(), shape=(COUNT // 2, 2)), NF4),
        ("same | nf4", spec("other"), NF4),
        # What a stage cannot compute with goes without it.
        ("delta | nf4", spec("i", "int64"), NONE),
        ("same | nf4", spec("i", "int64"), {**NONE, "stages": [SAME]}),
        # What would not get smaller is exact, and may still be named.
        ("delta | nf4", spec("short", count=1), NONE),
        ("delta | bf16", spec("h", "float16"), NONE),
        ("same | bf16", spec("h", "float16"), {**NONE, "stages": [SAME]}),
        ("rotate | none", spec(), NONE),
        ("rotate | none", spec("h", "float16"), NONE),
        ("delta | none", spec("h", "float16"), NONE),
        ("rotate | lossless", spec("h", "float16"), NONE),
        # A stage that leaves out what is equal pays even if nothing else gets smaller.
        ("same | none", spec(), {**NONE, "stages": [SAME]}),
        ("delta | none", spec(), {**NONE, "stages": [DELTA]}),
        # To name the base takes more than these 32 bytes.
        ("same | none", spec("short", count=8), NONE),
        ("same | none", spec("i", "int64", 0), NONE),
        ("delta | nf4", spec(count=0), NONE),
        # Scalars and byte strings are nothing for codecs.
        ("same | nf4", spec("w", "uint8", COUNT, "bytes"), NONE),
        # An entropy coder is for what is larger than its tables.
        ("lossless", spec("w", count=200), NONE),
        ("lossless", spec("w", count=300), {"name": "lossless"}),
    ],
)
def test_an_item_gets_the_stages_that_are_for_it(
    text: str, item: ItemSpec, expected: Mapping[str, object]
) -> None:
    """The manifest names what is to be undone, with the id of the base, and feedback never."""
    assert bound(text, item) == expected


def test_what_is_kept_may_be_named_but_not_changed() -> None:
    """Kept items arrive bit for bit: only ``same`` is for them."""
    assert bound("delta | rotate | nf4", spec(), ("w",)) == NONE
    assert bound("same | rotate | nf4", spec(), ("w",)) == {**NONE, "stages": [SAME]}


@pytest.mark.parametrize(
    ("codec", "error", "text"),
    [
        ({**NF4, "stages": [{"name": "fly"}]}, UnknownCodec, "no stage 'fly'"),
        ({"name": "fly", "stages": [DELTA]}, UnknownCodec, "no quantizer 'fly'"),
        ({**NF4, "stages": []}, InvalidSpecification, "1 to 8"),
        ({**NF4, "stages": {}}, InvalidSpecification, "1 to 8"),
        ({**NF4, "stages": [ROTATE] * 9}, InvalidSpecification, "1 to 8"),
        ({**NF4, "stages": ["delta"]}, InvalidSpecification, "an object"),
        ({**NF4, "stages": [{"base": BASE.id}]}, InvalidSpecification, "no name"),
        ({**NF4, "stages": [{"name": "delta", "base": "../../x"}]}, InvalidSpecification, "no id"),
        ({**NF4, "stages": [{"name": "delta", "bass": BASE.id}]}, InvalidSpecification, "bass"),
        ({**NF4, "stages": [{"name": "delta"}]}, InvalidSpecification, "does not say which base"),
        ({**NF4, "stages": [{"name": "same"}]}, InvalidSpecification, "does not say which base"),
        ({**NF4, "stages": [ROTATE, ROTATE]}, InvalidSpecification, "twice"),
        ({**NF4, "stages": [DELTA, SAME]}, InvalidSpecification, "exclude"),
        ({**NF4, "stages": [ROTATE, DELTA]}, InvalidSpecification, "comes first"),
        ({**NF4, "stages": [{"name": "feedback"}]}, InvalidSpecification, "nothing to undo"),
        ({**NF4, "stages": [{"name": "rotate", "blocksize": 3}]}, InvalidSpecification, "block sizes"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    codec: Mapping[str, object], error: type[TensorbusError], text: str
) -> None:
    """Whatever a manifest says of an item's codec, it is refused by name before a value is decoded."""
    with pytest.raises(error, match=text):
        codec_of(described(codec), CodecContext(base=BASE))


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("int64", NF4),
        ("int64", {**NONE, "stages": [DELTA]}),
        ("complex64", {**NONE, "stages": [ROTATE]}),
        ("float16", {"name": "fp16"}),
    ],
)
def test_a_codec_is_for_its_dtypes(dtype: str, codec: Mapping[str, object]) -> None:
    """A manifest cannot have integers rotated, or 16 bits put into 16 bits."""
    with pytest.raises(ManifestMismatch, match=f"is not for {dtype}"):
        codec_of(described(codec, dtype=dtype))


def test_who_does_not_hold_the_base_is_told_which() -> None:
    """A missing base, and a base without the tensor, are told with the id, before anything is decoded."""
    absent = described({**NF4, "stages": [{"name": "delta", "base": ABSENT}]})
    codec = codec_of(absent, NO_CONTEXT)
    assert codec.base == ABSENT
    with pytest.raises(MissingBase, match=ABSENT):
        check_base(codec, absent, CodecContext(base=BASE))
    strange = described({**NF4, "stages": [DELTA]}, "strange")
    with pytest.raises(MissingBase, match="no tensor 'strange' of float32"):
        check_base(codec_of(strange), strange, CodecContext(bases={BASE.id: BASE}))
    # Of a view, nothing is decoded.
    check_base(codec, replace(absent, view=View("x", 0, (1,))), NO_CONTEXT)


def test_the_change_is_read_without_the_base() -> None:
    """Who folds updates has the differences without holding the base; the sums themselves need it."""
    values = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
    context = publisher()
    codec = bind(Pipeline.parse("delta | rotate | nf4").resolved(context), spec(), context)
    payload = memoryview(bytearray(codec.encoded_size(COUNT)))
    payload = payload[: codec.encode(values.view(np.uint8).data, 0, payload).nbytes]

    received = codec_of(described(codec.config()))
    change = np.empty(COUNT, np.float32)
    received.change().decode(payload, 0, change.view(np.uint8).data)
    assert np.abs(change - values).mean() < 0.1
    sums = np.zeros(COUNT, np.float64)
    received.change().accumulate(payload, 0, sums, 2.0)
    assert np.allclose(sums, 2 * change.astype(np.float64), rtol=1e-6)
    with pytest.raises(MissingBase):
        received.decode(payload, 0, change.view(np.uint8).data)
    with pytest.raises(MissingBase):
        received.accumulate(payload, 0, sums, 1.0)


def test_a_codec_without_base_is_its_own_change() -> None:
    """There is nothing to leave out."""
    codec = codec_of(described(NF4))
    assert codec.change() is codec and codec.base is None


def test_a_description_is_json() -> None:
    """What the publisher writes, the receiver reads back to the same chain."""
    context = publisher()
    for text in ("delta | feedback | rotate | nf4", "same | none", "rotate:64 | int8"):
        codec = bind(Pipeline.parse(text).resolved(context), spec(), context)
        written = json.loads(json.dumps(codec.config()))
        assert codec_of(described(written)).config() == written
