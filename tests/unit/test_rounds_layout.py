"""Layouts: which updates belong to a model, and which are refused with what reason."""

from __future__ import annotations

import re

import pytest

from tensorbus.aggregator.layout import MAX_EXTRAS, Layout
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.errors import LimitExceeded, ManifestMismatch


def tensor(
    name: str, shape: tuple[int, ...] = (4, 3), kind: str = "float32", view: View | None = None
) -> ItemSpec:
    """A tensor of a manifest."""
    return ItemSpec(name, dtype(kind), shape, view=view)


def twin(name: str, of: str, shape: tuple[int, ...] = (4, 3)) -> ItemSpec:
    """A second name of a whole tensor."""
    return tensor(name, shape, view=View(of, 0, (3, 1)))


MODEL = Layout.of([tensor("embed"), tensor("norm", (4,)), twin("head", "embed")])


def test_order_and_codec_do_not_matter() -> None:
    """A site's state_dict may list its tensors as it likes, and its pipeline may be another."""
    coded = ItemSpec("norm", dtype("float32"), (4,), codec={"name": "nf4", "blocksize": 64})
    assert MODEL.match([twin("head", "embed"), coded, tensor("embed")]) == {"norm": "norm", "embed": "embed"}


def test_either_name_of_a_tied_tensor_may_be_the_one_that_is_sent() -> None:
    """safetensors' save_model keeps another name than torch's state_dict does."""
    update = [tensor("head"), tensor("norm", (4,)), twin("embed", "head")]
    assert MODEL.match(update) == {"head": "embed", "norm": "norm"}


def test_partial_views_of_a_tensor_match_whatever_the_tensor_is_called() -> None:
    """A fused weight with its parts as views, sent under either of its two names."""
    part = ("part", View("embed", 3, (3, 1)))
    model = Layout.of([tensor("embed"), twin("head", "embed"), tensor(part[0], (2, 3), view=part[1])])
    update = [tensor("head"), twin("embed", "head"), tensor("part", (2, 3), view=View("head", 3, (3, 1)))]
    assert model.match(update) == {"head": "embed"}
    moved = [tensor("head"), twin("embed", "head"), tensor("part", (2, 3), view=View("head", 0, (3, 1)))]
    with pytest.raises(ManifestMismatch, match="'part' lies in 'embed' at 3"):
        model.match(moved)


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ([*MODEL.specs, tensor("lora")], "has, unlike the model, 'lora'"),
        (
            [tensor("embed"), tensor("norm", (5,)), twin("head", "embed")],
            "'norm' is float32 [4] in the model but float32 [5] in the update",
        ),
        (
            [tensor("embed"), tensor("norm", (4,), "float16"), twin("head", "embed")],
            "float16 [4] in the update",
        ),
        ([tensor("embed"), tensor("norm", (4,)), tensor("head")], "a tied tensor has to stay tied"),
        (
            [tensor("embed"), ItemSpec("norm", dtype("uint8"), (4,), "bytes"), twin("head", "embed")],
            "but bytes in",
        ),
        ([], "the update has no tensor"),
    ],
)
def test_an_update_of_another_layout_is_refused_with_the_difference(update: list[ItemSpec], why: str) -> None:
    """Whoever runs the site reads what to change."""
    with pytest.raises(ManifestMismatch, match=re.escape(why)):
        MODEL.match(update)


def test_an_update_may_have_a_part_of_the_tensors() -> None:
    """Adapters, or only what changed; either name of a tied tensor stands for it."""
    assert MODEL.match([tensor("norm", (4,))]) == {"norm": "norm"}
    assert MODEL.match([tensor("head")]) == {"head": "embed"}
    assert MODEL.match([tensor("head"), twin("embed", "head")]) == {"head": "embed"}


def test_an_update_has_to_send_the_whole_of_what_a_tensor_is_a_part_of() -> None:
    """A piece of a fused weight alone says nothing of the rest, with which it is summed."""
    front, back = View("fused", 0, (3, 1)), View("fused", 6, (3, 1))
    model = Layout.of([tensor("fused"), tensor("q", (2, 3), view=front), tensor("k", (2, 3), view=back)])
    assert model.match([tensor("fused"), tensor("q", (2, 3), view=front)]) == {"fused": "fused"}
    with pytest.raises(ManifestMismatch, match="'q' is a part of 'fused'"):
        model.match([tensor("q", (2, 3))])
    with pytest.raises(ManifestMismatch, match="'k' lies in 'fused' at 6"):
        model.match([tensor("k", (2, 3))])


def test_what_is_apart_in_the_model_may_not_be_tied_in_an_update() -> None:
    """One of the two would be lost."""
    model = Layout.of([tensor("embed"), tensor("head")])
    with pytest.raises(ManifestMismatch, match="'head' lies in 'head'"):
        model.match([tensor("embed"), twin("head", "embed")])


def test_scalars_alone_are_no_update() -> None:
    """There is nothing that could be averaged."""
    model = Layout.of([tensor("w"), ItemSpec("step", dtype("uint8"), (1,), "scalar")])
    with pytest.raises(ManifestMismatch, match="no tensor"):
        model.match([ItemSpec("step", dtype("uint8"), (1,), "scalar")])


def test_many_differences_make_a_short_message() -> None:
    """A wholly different model is told in one line."""
    with pytest.raises(ManifestMismatch) as caught:
        MODEL.match([tensor("x" * 1024 + str(number)) for number in range(10_000)])
    assert len(str(caught.value)) < 500


def test_scalars_agree_whatever_their_size_but_not_beyond_the_limit() -> None:
    """They are kept beside the accumulator, so their memory is bounded."""
    model = Layout.of([tensor("w"), ItemSpec("step", dtype("uint8"), (1,), "scalar")])
    assert model.match([tensor("w"), ItemSpec("step", dtype("uint8"), (9,), "scalar")]) == {"w": "w"}
    with pytest.raises(LimitExceeded, match="at most"):
        model.match([tensor("w"), ItemSpec("step", dtype("uint8"), (MAX_EXTRAS + 1,), "scalar")])
