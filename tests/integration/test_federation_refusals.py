"""Updates that cannot be used: each is refused with its reason, and the round goes on without it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.headers import ModelHeaders, UpdateHeaders
from tensorbus.aggregator.job import JobSpec, model_key, update_key, updates_topic
from tensorbus.aggregator.models import GlobalModel, newest_model
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.base_files import open_base
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.entries import Entry
from tensorbus.streaming.frames import Kind, encode_frame
from tensorbus.streaming.headers import Envelope, HeaderValue, SliceHeader
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.sources import open_source
from tensorbus.streaming.tally import Tally

LENGTH = 600_000
SPEC = JobSpec("sft", sites=2, rounds=1, quorum=2, deadline=600)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


class Watch:
    """The events of an aggregator, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def seen(self, name: str, times: int = 1) -> Event:
        """The last of ``times`` events of this name, once it has happened."""
        async with asyncio.timeout(30), self._changed:
            while len(found := [event for event in self.events if event.name == name]) < times:
                await self._changed.wait()
            return found[-1]


def update(value: float) -> dict[str, object]:
    """A small tensor first, so that something is folded before the large one turns out to be bad."""
    return {"bias": np.full(3, value, np.float32), "weight": np.full(LENGTH, value, np.float32)}


async def submit(
    bus: Client, site: str, container: object, change: dict[str, HeaderValue] | None = None
) -> str:
    """A site's update, as a participant sends it but for the changed headers."""
    headers: dict[str, HeaderValue] = UpdateHeaders(site, 1, 10).to_headers("sft") | (change or {})
    receipt = await bus.publish(
        updates_topic("sft"), container, headers=headers, key=update_key("sft", 1, site)
    )
    assert not receipt.duplicate
    return receipt.id


def frames(site: str, dtype: str, codec: dict[str, object], payload: bytes) -> bytes:
    """A message of well-formed frames, with whatever dtype, codec and payload for the tensor ``weight``."""
    tally = Tally()
    headers = UpdateHeaders(site, 1, 10).to_headers("sft")
    entries = [
        Entry(name="bias", dtype="float32", shape=(3,)),
        Entry(name="weight", dtype=dtype, shape=(LENGTH,), codec=codec),
    ]
    bodies = [
        (Kind.OPEN, Envelope(headers=headers, container="numpy", items=2).to_map(), b""),
        (Kind.MANIFEST, {"first": 0}, pack_array([pack(entry.to_map()) for entry in entries])),
        (Kind.SLICE, SliceHeader(0, "bias", "float32", entries[0].codec, 0, 3).to_map(), bytes(12)),
        (Kind.SLICE, SliceHeader(1, "weight", dtype, codec, 0, LENGTH).to_map(), payload),
    ]
    message = b""
    for kind, header, body in bodies:
        head = encode_frame(kind, header, body)
        tally.add_head(kind, head, len(body))
        message += head + body
    return message + tally.close(items=2, original_bytes=4 * LENGTH + 12, clipped=0)


async def post(bus: Client, body: bytes) -> None:
    """Publish frames as they are."""
    async with aiohttp.ClientSession() as session:
        answer = await session.post(
            f"{bus.url}/v1/topics/{updates_topic('sft')}/messages",
            data=body,
            headers={"Content-Type": "application/vnd.tensorbus.frames"},
        )
        assert answer.status == 201, await answer.text()


def bad_value(value: float) -> Callable[[Client], object]:
    """An update whose last element is ``value``."""

    async def send(bus: Client) -> None:
        container = update(0)
        weight = container["weight"]
        assert isinstance(weight, np.ndarray)
        weight[-1] = value
        await submit(bus, "bad", container)

    return send


CASES: dict[str, tuple[Callable[[Client], object], str]] = {
    "NaN": (bad_value(np.nan), r"non-finite-values: .*'weight'"),
    "Inf": (bad_value(np.inf), r"non-finite-values: .*'weight'"),
    "overflow": (bad_value(3e38), r"non-finite-values: .*'weight'.* range of float32"),
    "a tensor too many": (
        lambda bus: submit(bus, "bad", update(0) | {"more": np.zeros(3, np.float32)}),
        "manifest-mismatch: the update has, unlike the model, 'more'",
    ),
    "another shape": (
        lambda bus: submit(
            bus, "bad", {"bias": np.zeros(4, np.float32), "weight": np.zeros(LENGTH, np.float32)}
        ),
        r"manifest-mismatch: 'bias' is float32 \[3\] in the model but float32 \[4\]",
    ),
    "another dtype": (
        lambda bus: submit(bus, "bad", {"bias": np.zeros(3), "weight": np.zeros(LENGTH, np.float32)}),
        r"manifest-mismatch: 'bias' .* float64",
    ),
    "no examples": (
        lambda bus: submit(bus, "bad", update(0), {"num_examples": 0}),
        "invalid-request: num_examples",
    ),
    "infinitely many": (lambda bus: submit(bus, "bad", update(0), {"num_examples": 1e300}), "num_examples"),
    "no site": (lambda bus: submit(bus, "bad", update(0), {"site": "../a"}), "invalid-name: site"),
    "a round to come": (
        lambda bus: submit(bus, "bad", update(0), {"round": 2}),
        "round-closed: round 2 has not begun",
    ),
    "plain bytes": (lambda bus: submit(bus, "bad", b"hello"), "the update has, unlike the model, 'body'"),
    "a foreign message": (
        lambda bus: submit(bus, "bad", update(0), {"kind": "greeting"}),
        "invalid-request: ",
    ),
    "an unknown codec": (
        lambda bus: post(bus, frames("bad", "float32", {"name": "zip9"}, b"x")),
        "unknown-codec: .*zip9",
    ),
    "an unknown dtype": (
        lambda bus: post(bus, frames("bad", "float9", {"name": "none"}, b"x")),
        "unsupported-dtype: .*float9",
    ),
    "a payload of another size": (
        lambda bus: post(bus, frames("bad", "float32", {"name": "nf4"}, bytes(LENGTH))),
        "payload-mismatch: .*'weight'",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_update_is_refused_with_its_reason_and_leaves_nothing_in_the_sums(
    bus: Client, case: str
) -> None:
    """One good update before it, one after it: the model is their mean, and the bad message is gone."""
    send, reason = CASES[case]
    await bus.publish("fl.sft.seed", update(0))
    watch = Watch()
    run = asyncio.ensure_future(Aggregator(bus, SPEC, init=None, listener=watch).run())
    await watch.seen("round")
    await submit(bus, "a", update(1))
    await watch.seen("folded")
    sent = send(bus)
    assert asyncio.iscoroutine(sent)
    await sent
    refused = await watch.seen("refused")
    assert re.search(reason, str(refused.fields["reason"])), refused.fields["reason"]
    await submit(bus, "b", update(4))
    await watch.seen("folded", times=2)
    async with asyncio.timeout(30):
        model = await run
    await holds(model, 2.5)
    assert len([event for event in watch.events if event.name == "refused"]) == 1


async def test_a_site_whose_update_was_refused_may_send_a_better_one_in_the_same_round(bus: Client) -> None:
    """With quorum = sites the round could never close otherwise."""
    await bus.publish("fl.sft.seed", update(0))
    watch = Watch()
    run = asyncio.ensure_future(Aggregator(bus, SPEC, init=None, listener=watch).run())
    await watch.seen("round")
    task = await anext(Participant(bus, job="sft", site="a").rounds())
    for refused, bad in enumerate(({"bias": np.zeros(4, np.float32)}, update(np.nan)), 1):
        assert await task.submit(bad, num_examples=10)
        await watch.seen("refused", times=refused)
    good = await task.submit(update(4), num_examples=10)
    assert good is not None
    assert not good.duplicate
    await submit(bus, "b", update(2))
    async with asyncio.timeout(30):
        await holds(await run, 3.0)


@pytest.mark.parametrize("reducer", ["mean", "fedavgm"])
async def test_an_update_that_only_spoils_the_model_is_found_out_when_the_round_is_closed(
    bus: Client, reducer: str, tmp_path: Path
) -> None:
    """Its change is finite, and so is the sum; what they give together with the model is not."""
    high: dict[str, npt.NDArray[np.float32]] = {"weight": np.full(1000, 3e38, np.float32)}
    model, low = tmp_path / "init.safetensors", tmp_path / "low.safetensors"
    save_file(high, model)
    save_file({"weight": -high["weight"]}, low)
    spec = replace(SPEC, reducer=reducer, up=Pipeline.parse("delta | none").to_json())
    watch = Watch()
    run = asyncio.ensure_future(Aggregator(bus, spec, init=model, listener=watch, state=tmp_path).run())
    await watch.seen("round")
    newest = await newest_model(bus, "sft")
    assert newest is not None
    for site, base, examples in (("bad", low, 1), ("a", model, 1e-3), ("b", model, 1e-3)):
        await bus.publish(
            updates_topic("sft"),
            {"weight": 0.1 * high["weight"]} if site == "bad" else high,
            codec="delta | none",
            base=open_base(base, newest.base),
            headers=UpdateHeaders(site, 1, examples).to_headers("sft"),
            key=update_key("sft", 1, site),
        )
        await watch.seen("folded", times=1)
    async with asyncio.timeout(30):
        final = cast("dict[str, npt.NDArray[np.float32]]", await (await run).load())
    np.testing.assert_array_equal(final["weight"], high["weight"])
    assert "range of float32" in str((await watch.seen("refused")).fields["reason"])
    assert (await watch.seen("refused")).fields["site"] == "bad"


async def test_an_update_of_a_round_that_another_aggregator_has_begun_is_not_refused_but_counts(
    bus: Client,
) -> None:
    """Two aggregators were started: the one that lags must not delete what the other waits for."""
    spec = replace(SPEC, rounds=2)
    await bus.publish("fl.sft.seed", update(0))
    watch = Watch()
    run = asyncio.ensure_future(Aggregator(bus, spec, init=None, listener=watch).run())
    await watch.seen("round")
    model = ModelHeaders(2, False, spec).to_headers()
    await bus.publish("fl.sft.model", update(1), headers=model, key=model_key("sft", 2))
    for site, value in (("a", 2), ("b", 4)):
        told = UpdateHeaders(site, 2, 10).to_headers("sft")
        await bus.publish(updates_topic("sft"), update(value), headers=told, key=update_key("sft", 2, site))
    async with asyncio.timeout(30):
        await holds(await run, 3.0)
    assert not [event for event in watch.events if event.name == "refused"]


async def test_an_update_that_rots_on_the_disk_is_refused_and_the_others_count(
    bus: Client, tmp_path: Path
) -> None:
    """A bit flips in the broker's files: the broker sees it; what was folded of it is taken out."""
    await bus.publish("fl.sft.seed", update(0))
    await submit(bus, "a", update(1))
    rotten = await submit(bus, "bad", update(9))
    (file,) = (tmp_path / "broker").rglob(f"{rotten}*")
    with file.open("r+b") as stored:
        stored.seek(-5_000, 2)
        stored.write(b"\x55")
    await submit(bus, "b", update(4))
    watch = Watch()
    async with asyncio.timeout(30):
        await holds(await Aggregator(bus, SPEC, init=None, listener=watch).run(), 2.5)
    assert "store-damaged" in str((await watch.seen("refused")).fields["reason"])
    assert [event.fields["sites"] for event in watch.events if event.name == "refolding"] == [["a"]]


async def test_every_update_of_a_round_may_be_refused_and_the_round_waits_for_better_ones(
    bus: Client,
) -> None:
    """No model is ever made of nothing."""
    await bus.publish("fl.sft.seed", update(0))
    watch = Watch()
    spec = JobSpec("sft", sites=2, rounds=1, quorum=1, deadline=0.2)
    run = asyncio.ensure_future(Aggregator(bus, spec, init=None, listener=watch).run())
    for site in ("a", "b", "c"):
        await submit(bus, site, {"bias": np.full(3, np.nan, np.float32)})
    await watch.seen("refused", times=3)
    await watch.seen("overdue")
    assert not run.done()
    await submit(bus, "d", update(7))
    async with asyncio.timeout(30):
        await holds(await run, 7.0)


async def holds(model: GlobalModel, value: float) -> None:
    """The model's tensors have this value everywhere."""
    got = cast("dict[str, npt.NDArray[np.float32]]", await model.load())
    for name, expected in update(value).items():
        np.testing.assert_array_equal(got[name], expected)


async def test_an_update_in_crumbs_is_refused_before_it_is_read(bus: Client) -> None:
    """Each slice costs the same, however small: a million of them would keep all others waiting."""
    container = {"w": np.zeros(40_000, np.float32)}
    await bus.publish("fl.sft.seed", container)
    watch = Watch()
    spec = JobSpec("sft", sites=1, rounds=1, quorum=1, deadline=600)
    run = asyncio.ensure_future(Aggregator(bus, spec, init=None, listener=watch).run())
    headers = UpdateHeaders("bad", 1, 1).to_headers("sft")
    encoder = ContainerEncoder(open_source(container), Pipeline.parse(None), headers, frame_bytes=100)
    room = memoryview(bytearray(100))
    frames = [frame.head + bytes(frame.payload) for frame in encoder.frames(lambda: room)]
    assert len(frames) > 4200
    await post(bus, b"".join(frames))
    async with asyncio.timeout(30):
        refused = await watch.seen("refused")
        assert "frames" in str(refused.fields["reason"])
        assert not [event for event in watch.events if event.name == "folding"]
        await submit(bus, "good", container)
        await run
