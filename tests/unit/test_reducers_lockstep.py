"""Updates side by side: orders, slices, parts, late ones, interruptions, and how much memory that takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelling.federated import Array, Federation, base_id, encoded
from tensorbus.aggregator.encoded_update import EncodedUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.decoded import Decoded, Form
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import Contribution, FoldingInterrupted, Update, UpdateRefused
from tensorbus.codecs.item import Item
from tensorbus.codecs.serializers.numpy import NumpySerializer
from tensorbus.errors import MissingBase

WORKSPACE = Workspace(lambda: Path("unused"))
JOINT = ["median", "trimmed:0.34", "multi-krum:f=0,m=3"]


async def reduced(text: str, federation: Federation) -> dict[str, Array]:
    """The next model."""
    reducer = ReducerSpec.parse(text).build(federation.layout, WORKSPACE)
    try:
        made = await federation.round(reducer)
    finally:
        await reducer.aclose()
    return {name: value for name, value in made.items() if isinstance(value, np.ndarray)}


def tensors(seed: int, names: Sequence[str] = "abc") -> dict[str, Array]:
    """Float tensors of a few thousand elements."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(67, 61)).astype(np.float32) for name in names}


async def test_containers_in_one_order_are_read_as_one_stream_and_others_tensor_by_tensor() -> None:
    """The order of most updates is followed, be it the model's or not; what is made is the same."""
    updates = [tensors(at) for at in range(5)]
    wanted = {name: np.median([one[name] for one in updates], axis=0) for name in "abc"}
    for orders, streams in (
        (["abc"] * 5, 5),
        (["abc", "bca", "abc", "cab", "abc"], 3),
        (["cba"] * 4 + ["abc"], 4),
    ):
        federation = Federation()
        federation.model(3, tensors(9))
        for at, order in enumerate(orders):
            federation.update(
                f"s{at}", {name: updates[at][name] for name in order}, frame_bytes=4096 + 999 * at
            )
        made = await reduced("median", federation)
        assert all(np.array_equal(made[name], wanted[name]) for name in "abc")
        # Each is read once more before, when it is checked.
        assert sum(update.whole - 1 for update, _ in federation.updates) == streams
        assert sum(update.single for update, _ in federation.updates) == 3 * (5 - streams)
        assert federation.models[3].whole == federation.models[3].single == 0  # nobody needed it


async def test_tied_tensors_are_combined_once_whichever_name_is_sent() -> None:
    """A state_dict sends the embedding, another container the output head; the result has both names."""

    def tied(value: int, first: str, second: str) -> Sequence[Item]:
        shared = np.full((50, 3), value, np.float32)
        return NumpySerializer().items({first: shared, second: shared})

    model = encoded("model", tied(0, "embed", "head"))
    sent = [
        encoded("a", tied(1, "embed", "head")),
        encoded("b", tied(2, "head", "embed")),
        encoded("c", tied(9, "embed", "head")),
    ]
    for text, value in (("median", 2), ("clip:1000 | median", 2)):
        reducer = ReducerSpec.parse(text).build(Layout.of(model.manifest), WORKSPACE)

        async def find(base: str) -> Update:
            return model

        await reducer.begin(1, find)
        await reducer.reset()
        for update in sent:
            await reducer.add(
                update, Contribution(update.id, update.id, 1, 1.0, base_id("m")), lambda _: None
            )
        items = {item.spec.name: item for item in await reducer.close(model, find)}
        got = np.frombuffer(items["embed"].read(0, 150), np.float32)
        assert np.allclose(got, value, rtol=1e-6)
        assert items["head"].spec.view is not None and items["head"].spec.view.of == "embed"
        await reducer.aclose()


@pytest.mark.parametrize("text", JOINT)
async def test_a_tensor_is_combined_of_the_updates_that_have_it(text: str) -> None:
    """Partial updates; one in no update stays as it is, to the last bit of a large integer."""
    federation = Federation()
    large = np.array([2**62 + 1, -(2**62) - 3])
    federation.model(3, tensors(1) | {"n": large})
    sites = {"p": "ab", "q": "b", "r": "ba", "s": "b"}
    sent = {site: tensors(ord(site), names) for site, names in sites.items()}
    for site, values in sent.items():
        federation.update(site, values, "delta | none" if site == "q" else "none")
    made = await reduced(text, federation)
    assert np.array_equal(made["n"], large)
    assert np.array_equal(made["c"], federation_model(federation, "c"))
    if text == "median":
        for name in "ab":
            rows = [values[name] for values in sent.values() if name in values]
            assert np.allclose(made[name], np.median(rows, axis=0), rtol=1e-6, atol=1e-6)


def federation_model(federation: Federation, name: str) -> Array:
    """A tensor of the current model."""
    spec = next(spec for spec in federation.models[3].manifest if spec.name == name)
    out = bytearray(spec.nbytes)
    federation.bases[3].read_into(spec, 0, spec.count, memoryview(out))
    return np.frombuffer(out, np.float32).reshape(spec.shape)


@pytest.mark.parametrize("codec", ["none", "delta | none", "same | none", "delta | nf4"])
async def test_late_updates_count_as_what_they_changed(codec: str) -> None:
    """b + (x − b_v), whether they came whole or as changes; only whole ones need the model b_v."""
    federation = Federation()
    models = {number: tensors(number) for number in (1, 2, 3)}
    for number, values in models.items():
        federation.model(number, values)
    exact: list[dict[str, Array]] = []
    for at, number in enumerate((3, 2, 1, 2, 3)):
        step = {name: value / 10 for name, value in tensors(50 + at).items()}
        moved = {name: models[number][name] + step[name] for name in "abc"}
        federation.update(f"s{at}", moved, codec, number=number)
        exact.append({name: models[3][name] + step[name] for name in "abc"})
    made = await reduced("median", federation)
    tolerance = 0.05 if codec.endswith("nf4") else 1e-5
    for name in "abc":
        assert np.allclose(made[name], np.median([one[name] for one in exact], axis=0), atol=tolerance)
    needed = not codec.startswith("delta")
    assert federation.models[1].whole == federation.models[2].whole == needed


async def test_what_cannot_be_read_at_the_end_is_told_apart() -> None:
    """A message that is gone interrupts the round, one that is damaged by then is to blame by its id."""
    federation = Federation()
    federation.model(2, tensors(2))
    federation.model(3, tensors(3))
    for at in range(3):
        federation.update(f"s{at}", tensors(at), number=2 + at % 2)
    reducer = ReducerSpec.parse("median").build(federation.layout, WORKSPACE)
    await federation.round(reducer)
    update = federation.updates[1][0]
    update.gone = True
    with pytest.raises(FoldingInterrupted):
        await reducer.close(federation.models[3], federation.find_base)
    update.gone = False
    federation.models[2].gone = True
    with pytest.raises(FoldingInterrupted):
        await reducer.close(federation.models[3], federation.find_base)
    federation.models[2].gone = False
    broken = bytearray(update.body)
    broken[len(broken) // 2] ^= 1
    update.become(bytes(broken))
    with pytest.raises(UpdateRefused) as refused:
        await reducer.close(federation.models[3], federation.find_base)
    assert refused.value.message == update.id
    await reducer.aclose()


async def test_sums_beyond_the_dtype_are_refused_by_the_update_that_makes_them() -> None:
    """A change that is finite by itself may leave the range when the model is added to it."""
    federation = Federation()
    federation.model(3, {"w": np.full(300, 3e38, np.float32)})
    federation.model(2, {"w": np.zeros(300, np.float32)})
    federation.update("good", {"w": np.zeros(300, np.float32)})
    federation.update("bad", {"w": np.full(300, 3e38, np.float32)}, "delta | none", number=2)
    reducer = ReducerSpec.parse("median").build(federation.layout, WORKSPACE)
    with pytest.raises(UpdateRefused, match="beyond float32") as refused:
        await federation.round(reducer)
    assert refused.value.message == "2-bad"
    await reducer.aclose()


async def test_changes_from_another_model_are_refused() -> None:
    """When they are added; a contribution of sums is no update either."""
    federation = Federation()
    federation.model(3, tensors(3))
    federation.update("a", tensors(1), "delta | none")
    update, told = federation.updates[0]
    reducer = ReducerSpec.parse("median").build(federation.layout, WORKSPACE)
    await reducer.reset()
    with pytest.raises(MissingBase):
        await reducer.add(update, replace(told, base=base_id("other")), lambda _: None)
    for text in ("median", "clip:1"):
        other = ReducerSpec.parse(text).build(federation.layout, WORKSPACE)
        await other.begin(3, federation.find_base)
        await other.reset()
        with pytest.raises(Exception, match="sums of many"):
            await other.add(update, replace(told, partial=True), lambda _: None)
        await other.aclose()
    await reducer.aclose()


@pytest.mark.parametrize(
    "codec",
    [
        *("none", "bf16", "int8", "nf4", "nf4-dq", "uniform", "uniform:0.04", "lossless", "rotate | lloyd:2"),
        *("delta | nf4", "delta | rotate | lloyd:3", "delta | uniform", "same | lossless"),
    ],
)
async def test_pieces_of_a_slice_are_those_of_the_whole(codec: str) -> None:
    """In whatever pieces an update is read, and wherever they begin, with bits to spare or not."""
    random = np.random.default_rng(3)
    count = 2_500_001
    federation = Federation()
    federation.model(3, {"w": random.normal(size=count).astype(np.float32)})
    update = federation.update("a", {"w": random.normal(size=count).astype(np.float32)}, codec)
    decoded = Decoded()
    forms: set[Form] = set()
    async for event in update.slices():
        whole = np.zeros(event.count, np.float32)
        if event.codec.needs_base(event.payload):
            event.codec.change().decode(event.payload, event.offset, whole.view(np.uint8).data)
        else:
            event.codec.accumulate(event.payload, event.offset, whole, 1.0)
        decoded.hold_update(event)
        forms.add(decoded.form)
        got = np.empty_like(whole)
        at = 0
        while at < event.count:
            end = min(event.count, at + int(random.integers(1, 90_000)))
            decoded.read(event.offset + at, event.offset + end, got[at:end])
            at = end
        assert np.array_equal(got, whole)
        decoded.release()
    assert forms == {Form.CHANGE if codec.startswith("delta") else Form.WHOLE}


async def peak(folder: Path, text: str, updates: int, mib: int, codec: str = "none") -> int:
    """Bytes that a round takes at most, beside an accumulator in a file."""
    federation = Federation()
    model = {"w": np.zeros(mib << 18, np.float32)}
    federation.model(3, model)
    files: list[tuple[EncodedUpdate, Contribution]] = []
    for at in range(updates):
        model["w"][:] = at
        update = federation.update(f"s{at}", model, codec)
        path = folder / f"{at}.frames"
        path.write_bytes(update.body)
        files.append((EncodedUpdate(path), federation.updates.pop()[1]))
        del update
    path = folder / "model.frames"
    path.write_bytes(federation.models[3].body)
    layout, find = federation.layout, federation.find_base
    workspace = Workspace(lambda: folder, accumulator="file")
    del model, federation
    current: Update = EncodedUpdate(path)
    reducer = ReducerSpec.parse(text).build(layout, workspace)
    tracemalloc.start()
    try:
        await reducer.begin(3, find)
        await reducer.reset()
        for each, told in files:
            await reducer.add(each, told, lambda _: None)
        items = await reducer.close(current, find)
        assert len(items) == 1
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        await reducer.aclose()


@pytest.mark.parametrize("text", ["median", "multi-krum:f=0", "trimmed | fedadam:start=3"])
async def test_memory_is_a_few_frames_for_each_update_whatever_the_size(tmp_path: Path, text: str) -> None:
    """Six more updates take six frames and what is decoded of them; a model that is six times as large takes
    nothing more."""
    small = await peak(tmp_path, text, 3, 4)
    assert await peak(tmp_path, text, 9, 4) - small < 6 * (3 << 19)
    assert await peak(tmp_path, text, 3, 24) - small < 2 << 20


@pytest.mark.parametrize("codec", ["nf4", "delta | rotate | lloyd:2"])
async def test_a_frame_of_few_bits_is_never_decoded_as_a_whole(tmp_path: Path, codec: str) -> None:
    """A frame of 4 bits stands for 7 MiB of float32; six more updates take no more for it."""
    small = await peak(tmp_path, "median", 3, 16, codec)
    assert await peak(tmp_path, "median", 9, 16, codec) - small < 6 * (3 << 19)
