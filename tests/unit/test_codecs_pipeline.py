"""Promises of the pipeline: the right items are quantised, the others are sent exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensorbus.codecs.chain import bind
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemKind, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import QUANTIZERS
from tensorbus.errors import InvalidSpecification, MissingBase, UnknownCodec
from tensorbus.streaming.base_files import open_base

LOSSY = [name for name in QUANTIZERS if name != "none"]


def spec(
    name: str = "weight", dtype: str = "float32", count: int = 100_000, kind: ItemKind = "tensor"
) -> ItemSpec:
    """A flat item."""
    return ItemSpec(name, DTYPES[dtype], (count,), kind)


def chosen(pipeline: Pipeline, item: ItemSpec) -> str:
    """The name of the item's quantizer."""
    return str(bind(pipeline, item).config()["name"])


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
        ("lloyd:3", {"name": "lloyd", "bits": 3, "blocksize": 1024}),
        ("lloyd:bits=3,blocksize=64", {"name": "lloyd", "bits": 3, "blocksize": 64}),
        ("lloyd:3,blocksize=64", {"name": "lloyd", "bits": 3, "blocksize": 64}),
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
        "nf4:64",
        "lloyd:2.0",
        "lloyd:blocksize=64,2",
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


BASE = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "stages", "quantizer"),
    [
        (
            "delta | feedback | rotate | lloyd:2",
            [{"name": "delta"}, {"name": "feedback"}, {"name": "rotate", "blocksize": 1024, "seed": 1}],
            {"name": "lloyd", "bits": 2, "blocksize": 1024},
        ),
        ("same|none", [{"name": "same"}], {"name": "none"}),
        (
            "  rotate:64  |nf4",
            [{"name": "rotate", "blocksize": 64, "seed": 1}],
            {"name": "nf4", "blocksize": 64},
        ),
        (
            "rotate:seed=7 | nf4",
            [{"name": "rotate", "blocksize": 1024, "seed": 7}],
            {"name": "nf4", "blocksize": 64},
        ),
        (f"delta:{BASE} | int8", [{"name": "delta", "base": BASE}], {"name": "int8", "blocksize": 4096}),
        (f"same:base={BASE} | nf4-dq", [{"name": "same", "base": BASE}], {"name": "nf4-dq"}),
    ],
)
def test_stages_are_written_in_the_order_in_which_they_are_done(
    text: str, stages: list[dict[str, object]], quantizer: dict[str, object]
) -> None:
    """A text with bars and its JSON say the same; JSON has no stages where there are none."""
    pipeline = Pipeline.parse(text, keep=["*norm*"])
    written = json.loads(json.dumps(pipeline.to_json()))
    assert written == {"stages": stages, "quantizer": quantizer, "keep": ["*norm*"]}
    assert Pipeline.parse(written).to_json() == written
    assert Pipeline.parse(pipeline) == pipeline
    assert "stages" not in Pipeline.parse("nf4").to_json()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("delta", "delta | nf4"),
        ("nf4 | delta", "nf4 comes last"),
        ("nf4 | int8", "nf4 comes last"),
        ("delta | delta | nf4", "twice"),
        ("rotate:64 | rotate:128 | nf4", "twice"),
        ("delta | same | nf4", "exclude each other"),
        ("rotate | delta | nf4", "delta comes first"),
        ("feedback | delta | nf4", "delta comes first"),
        ("rotate | same | nf4", "same comes first"),
        ("rotate | feedback | nf4", "feedback comes first"),
        ("same | feedback | nf4", "feedback comes first"),
        ("feedback | none", "none leaves no error"),
        ("delta | feedback | lossless", "lossless leaves no error"),
        ("delta:nonsense | nf4", "no id of a base"),
        (f"delta:{BASE.upper()} | nf4", "no id of a base"),
        ({"stages": "delta", "quantizer": "nf4"}, "a list"),
        ({"stages": [1], "quantizer": "nf4"}, "a name or an object"),
        ({"stages": [{"name": "delta", "base": 7}], "quantizer": "nf4"}, "no id of a base"),
        ({"stages": [{"base": BASE}], "quantizer": "nf4"}, "has no name"),
        ({"stages": ["rotate"] * 9, "quantizer": "nf4"}, "more than 8"),
    ],
)
def test_stages_that_make_no_sense_are_refused(written: object, text: str) -> None:
    """The error says what is wrong with them or with their order."""
    with pytest.raises(InvalidSpecification, match=text):
        Pipeline.parse(written)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("written", ["fly | nf4", "delta | fly", "", "delta | | nf4", "delta |"])
def test_unknown_stages_are_refused(written: str) -> None:
    """So is an empty place between two bars."""
    with pytest.raises(UnknownCodec):
        Pipeline.parse(written)


def test_a_pipeline_is_resolved_to_one_base() -> None:
    """What goes into a message names the base by its id, whatever the publisher's pipeline left open."""
    base = open_base({"w": np.zeros(3, np.float32)})
    other = open_base({"w": np.ones(3, np.float32)})
    context = CodecContext(bases={other.id: other}, base=base)
    for text, resolved in [
        ("delta | nf4", {"name": "delta", "base": base.id}),
        (f"same:{other.id} | nf4", {"name": "same", "base": other.id}),
    ]:
        assert Pipeline.parse(text).resolved(context).to_json()["stages"] == [resolved]
    with pytest.raises(MissingBase, match="base="):
        Pipeline.parse("delta | nf4").resolved(CodecContext())
    with pytest.raises(MissingBase, match=BASE):
        Pipeline.parse(f"delta:{BASE} | nf4").resolved(context)
    with pytest.raises(InvalidSpecification, match="residuals="):
        Pipeline.parse("feedback | nf4").resolved(context)
