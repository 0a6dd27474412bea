"""Promises of the pipeline: the right items are quantised, the others are sent exactly."""

from __future__ import annotations

import json

import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemKind, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import QUANTIZERS
from tensorbus.errors import InvalidSpecification, UnknownCodec

LOSSY = [name for name in QUANTIZERS if name != "none"]


def spec(
    name: str = "weight", dtype: str = "float32", count: int = 100_000, kind: ItemKind = "tensor"
) -> ItemSpec:
    """A flat item."""
    return ItemSpec(name, DTYPES[dtype], (count,), kind)


def chosen(pipeline: Pipeline, item: ItemSpec) -> str:
    """The name of the item's quantizer."""
    return pipeline.quantizer_for(item).name


@pytest.mark.parametrize(
    ("written", "config"),
    [
        (None, {"name": "none"}),
        ("none", {"name": "none"}),
        ("nf4", {"name": "nf4", "blocksize": 64}),
        ("nf4:blocksize=128", {"name": "nf4", "blocksize": 128}),
        ({"quantizer": "int8"}, {"name": "int8", "blocksize": 4096}),
        ({"quantizer": {"name": "fp4", "blocksize": 32}, "keep": []}, {"name": "fp4", "blocksize": 32}),
        ({}, {"name": "none"}),
    ],
)
def test_what_people_write_is_understood(written: object, config: dict[str, object]) -> None:
    """None, a name, a name with parameters, and JSON all make a pipeline, and its JSON makes it again."""
    pipeline = Pipeline.parse(written)  # pyright: ignore[reportArgumentType]
    assert pipeline.quantizer.config() == config
    assert Pipeline.parse(json.loads(json.dumps(pipeline.to_json()))).to_json() == pipeline.to_json()
    assert Pipeline.parse(pipeline) == pipeline


@pytest.mark.parametrize(
    "written",
    [
        "nf4:blocksize",
        "nf4:=64",
        "nf4:blocksize=many",
        "nf4:blocksize=63",
        "nf4:blocksize=0",
        "nf4:size=64",
        "nf4-dq:blocksize=64",
        {"codec": "nf4"},
        {"quantizer": 4},
        {"quantizer": {"blocksize": 64}},
        {"quantizer": {"name": "nf4", "blocksize": 64.0}},
        {"quantizer": {"name": "nf4", "blocksize": True}},
        {"quantizer": {"name": "nf4", "blocksize": 2**70}},
        {"quantizer": {"name": "nf4", "self": 1}},
        {"quantizer": {"name": "nf4", 1: 2}},
        {"quantizer": {"name": ["nf4"]}},
        {"quantizer": "nf4", "keep": "*norm*"},
        {"quantizer": "nf4", "keep": [1]},
        {"quantizer": "nf4", "keep": [""]},
        {"quantizer": "nf4", "keep": ["*" * 2000]},
        {"quantizer": "nf4", "keep": ["x"] * 1000},
    ],
)
def test_malformed_specifications_are_refused(written: object) -> None:
    """Whatever is wrong is an InvalidSpecification, never a TypeError of some constructor."""
    with pytest.raises(InvalidSpecification):
        Pipeline.parse(written)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["", "NF4", "nf5", "os:system", "../nf4", "x" * 100_000])
def test_unknown_codecs_are_named_with_what_there_is(name: str) -> None:
    """The error lists the installed codecs, and does not grow with what was asked for."""
    with pytest.raises(UnknownCodec, match="nf4-dq") as caught:
        Pipeline.parse({"quantizer": {"name": name}})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize(
    "dtype", [name for name, one in DTYPES.items() if one.kind != "float" or one.itemsize == 1]
)
def test_integers_bools_complex_and_8_bit_floats_stay_exact(codec: str, dtype: str) -> None:
    """They are never quantised, whatever the pipeline."""
    assert chosen(Pipeline.parse(codec), spec(dtype=dtype)) == "none"


@pytest.mark.parametrize("codec", ["fp16", "bf16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_tensors_are_not_sent_at_other_16_bits(codec: str, dtype: str) -> None:
    """A 16-bit codec leaves 16-bit tensors as they are."""
    assert chosen(Pipeline.parse(codec), spec(dtype=dtype)) == "none"


@pytest.mark.parametrize("codec", LOSSY)
def test_items_that_would_not_get_smaller_stay_exact(codec: str) -> None:
    """A tensor of one element, an empty one, and scalars are sent as they are; a large one is not."""
    pipeline = Pipeline.parse(codec)
    expected = codec if codec in ("fp16", "bf16") else "none"
    assert chosen(pipeline, spec(count=1)) == expected
    assert chosen(pipeline, spec(count=0)) == "none"
    assert chosen(pipeline, spec(dtype="uint8", kind="scalar")) == "none"
    assert chosen(pipeline, spec(dtype="uint8", kind="bytes")) == "none"
    assert chosen(pipeline, spec()) == codec


def test_kept_names_stay_exact() -> None:
    """Patterns match whole names, case and all; more of them add up."""
    pipeline = Pipeline.parse({"quantizer": "nf4", "keep": ["*norm*"]}, keep=["lm_head.*", "*norm*"])
    assert pipeline.keep == ("*norm*", "lm_head.*")
    names = ["model.norm.weight", "lm_head.weight", "model.lm_head.weight", "model.Norm.weight"]
    assert [chosen(pipeline, spec(name)) for name in names] == ["none", "none", "nf4", "nf4"]
