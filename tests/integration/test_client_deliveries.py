"""Deliveries: handed to one worker, kept while it is held, settled once."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import numpy
import pytest

from tensorbus.bus.broker import BrokerSettings
from tensorbus.bus.client import Client, ClientSettings, Delivery, Subscription
from tensorbus.bus.client.acks import Acks
from tensorbus.bus.client.delivery_host import DeliveryHost
from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.testing import running_broker
from tensorbus.errors import AlreadySettled, ClientClosed, Conflict, InvalidName, InvalidRequest, NotFound

PROMPT = 5.0
"""Seconds within which a delivery that is due has to come; tests end sooner."""
SHORT = 0.2
"""Seconds after which a delivery that must not come is taken as not coming."""


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client of a broker of its own."""
    settings = ClientSettings(poll_wait=1.0, retry_for=2.0)
    async with running_broker(tmp_path / "data") as url, Client(url, settings=settings) as client:
        yield client


async def _next(deliveries: Subscription) -> Delivery:
    delivery = await deliveries.receive(timeout=PROMPT)
    assert delivery is not None
    return delivery


async def test_a_delivery_tells_what_it_is(bus: Client) -> None:
    """Id, topic, headers, manifest and attempt are there before anything is fetched."""
    receipt = await bus.publish("fl.a.updates", b"12345", headers={"num_examples": 812, "site": "a"})
    async with bus.subscribe("fl.*.updates", consumer="aggregator") as deliveries:
        async for delivery in deliveries:
            assert (delivery.id, delivery.topic) == (receipt.id, "fl.a.updates")
            assert delivery.headers == {"num_examples": 812, "site": "a"}
            assert [(item.name, item.kind, item.nbytes) for item in delivery.manifest] == [
                ("body", "bytes", 5)
            ]
            assert delivery.attempt == 1
            await delivery.ack()
            break


async def test_messages_come_in_order_and_once(bus: Client) -> None:
    """Two workers of one consumer share its messages; acknowledged ones do not come again."""
    ids = [(await bus.publish("notes.order", str(number).encode())).id for number in range(4)]
    async with bus.subscribe("notes.>", "workers") as one, bus.subscribe("notes.>", "workers") as two:
        got: list[str] = []
        for worker in (one, two, one, two):
            delivery = await _next(worker)
            got.append(delivery.id)
            await delivery.ack()
        assert got == ids
        assert await one.receive(timeout=SHORT) is None
    async with bus.subscribe("notes.>", "workers") as again:
        assert await again.receive(timeout=SHORT) is None


async def test_acknowledging_twice_is_refused(bus: Client) -> None:
    """The second settlement of a delivery raises AlreadySettled, here and at the broker."""
    await bus.publish("notes.twice", b"1")
    async with bus.subscribe("notes.twice", "worker") as deliveries:
        delivery = await _next(deliveries)
        same = _second(bus, _given(delivery), delivery)
        await delivery.ack()
        for settle in (
            delivery.ack,
            delivery.nak,
            delivery.term,
            delivery.in_progress,
            same.ack,
            same.in_progress,
        ):
            with pytest.raises(AlreadySettled):
                await settle()


async def test_acknowledging_for_another_consumer_is_refused(bus: Client) -> None:
    """A delivery can only be settled for the consumer that it was handed to."""
    await bus.publish("notes.other", b"1")
    async with bus.subscribe("notes.other", "mine") as mine, bus.subscribe("notes.other", "theirs") as theirs:
        delivery, other = await _next(mine), await _next(theirs)
        wrong = DeliveryInfo(delivery.token, other.consumer, 1, delivery.info)
        stolen = _second(bus, wrong, delivery)
        with pytest.raises(NotFound):
            await stolen.ack()
        await delivery.ack()
        await other.ack()


def _given(delivery: Delivery) -> DeliveryInfo:
    return DeliveryInfo(delivery.token, delivery.consumer, delivery.attempt, delivery.info)


def _second(bus: Client, given: DeliveryInfo, of: Delivery) -> Delivery:
    """A second handle on a delivery, or a forged one."""
    connection, bases = bus._connection, bus._bases  # pyright: ignore[reportPrivateUsage] - no other way
    host = DeliveryHost(
        connection, bases, Acks(connection, f"/v1/consumers/{given.consumer}"), lambda _: None
    )
    return Delivery(host, given, of.info, of.entries)


async def test_nak_hands_it_over_again(bus: Client) -> None:
    """A refused delivery comes again, its attempt counted; with a delay not before that is over."""
    await bus.publish("notes.nak", b"1")
    async with bus.subscribe("notes.nak", "worker") as deliveries:
        await (await _next(deliveries)).nak()
        delivery = await _next(deliveries)
        assert delivery.attempt == 2
        await delivery.nak(delay=60)
        assert await deliveries.receive(timeout=SHORT) is None


async def test_term_ends_it(bus: Client) -> None:
    """A delivery that can never be dealt with is not handed over again."""
    await bus.publish("notes.term", b"1")
    async with bus.subscribe("notes.term", "worker") as deliveries:
        await (await _next(deliveries)).term()
        assert await deliveries.receive(timeout=SHORT) is None


async def test_a_delivery_that_is_held_stays_ours(bus: Client) -> None:
    """Heartbeats keep a delivery for as long as it is held; once it is let go, it is handed over again."""
    await bus.publish("notes.held", b"1")
    async with bus.subscribe("notes.held", "worker", ack_wait=0.3) as deliveries:
        delivery = await _next(deliveries)
        assert await deliveries.receive(timeout=1.0) is None
        del delivery
        assert (await _next(deliveries)).attempt == 2


async def test_reading_holds_a_delivery(bus: Client) -> None:
    """A delivery that nothing but its own items() refers to is still held."""
    await bus.publish("notes.read", b"1")
    async with bus.subscribe("notes.read", "worker", ack_wait=0.3) as deliveries:
        items = (await _next(deliveries)).items()
        await anext(items)
        assert await deliveries.receive(timeout=1.0) is None
        await items.aclose()


async def test_leaving_gives_back_what_is_held(bus: Client) -> None:
    """What is unsettled when the block is left is handed to the next worker at once, not after ack_wait."""
    await bus.publish("notes.leave", b"1")
    async with bus.subscribe("notes.leave", "worker", ack_wait=600) as deliveries:
        delivery = await _next(deliveries)
    async with bus.subscribe("notes.leave", "worker", ack_wait=600) as deliveries:
        again = await _next(deliveries)
        assert (again.id, again.attempt) == (delivery.id, 2)


async def test_an_ephemeral_consumer_is_deleted(bus: Client) -> None:
    """Without a name, a consumer lives as long as the block, also when that ends in an error."""

    async def work() -> None:
        async with bus.subscribe(">") as deliveries:
            assert [info.name for info in await bus.consumers()] == [deliveries.consumer]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert await bus.consumers() == []


async def test_new_consumers_may_skip_what_is_stored(bus: Client) -> None:
    """``start="new"`` begins with what is sealed from then on."""
    await bus.publish("notes.start", b"old")
    async with bus.subscribe("notes.start", start="new") as deliveries:
        receipt = await bus.publish("notes.start", b"new")
        assert (await _next(deliveries)).id == receipt.id


async def test_a_consumer_keeps_its_settings(bus: Client) -> None:
    """Subscribing to an existing consumer with another filter is refused."""
    async with bus.subscribe("notes.a", "worker"):
        with pytest.raises(Conflict):
            async with bus.subscribe("notes.b", "worker"):
                pass


async def test_names_are_checked_at_once(bus: Client) -> None:
    """Malformed filters and consumer names are refused where they are written."""
    for filter_, consumer in (
        ("a..b", None),
        (">.a", None),
        ("a\0", None),
        ("ok", "../x"),
        ("ok", "x" * 10_000),
    ):
        with pytest.raises(InvalidName):
            bus.subscribe(filter_, consumer)


async def test_a_subscription_is_used_in_its_block(bus: Client) -> None:
    """Outside its block, a subscription says how it is to be used."""
    deliveries = bus.subscribe("notes.block")
    with pytest.raises(ClientClosed, match="async with"):
        await deliveries.receive()


async def test_a_deleted_message_is_passed_over(bus: Client) -> None:
    """A message that is deleted before it is handed over never comes; the next one does."""
    first = await bus.publish("notes.delete", b"1")
    second = await bus.publish("notes.delete", b"2")
    await bus.delete(first.id)
    async with bus.subscribe("notes.delete") as deliveries:
        assert (await _next(deliveries)).id == second.id


async def test_receiving_can_be_cancelled(bus: Client) -> None:
    """A worker that stops waiting takes no delivery with it."""
    async with bus.subscribe("notes.cancel", "worker", ack_wait=600) as deliveries:
        for _ in range(3):
            waiting = asyncio.create_task(deliveries.receive())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        receipt = await bus.publish("notes.cancel", b"1")
        assert (await _next(deliveries)).id == receipt.id


# --- many small messages -----------------------------------------------------------------------------


class Requests:
    """Counts the requests of a client, by the last part of their path."""

    def __init__(self, bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        connection = bus._connection  # pyright: ignore[reportPrivateUsage] - nobody else knows
        request = connection.request

        def counted(method: str, path: str, **rest: Any) -> Any:
            self.seen.append(path.rsplit("/", 1)[-1])
            return request(method, path, **rest)

        monkeypatch.setattr(connection, "request", counted)


async def test_a_small_message_takes_one_request(bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values come along with the delivery, however they are read."""
    values = {"weight": numpy.arange(1000, dtype=numpy.float32), "bias": numpy.ones(3)}
    await bus.publish("notes.small", values)
    async with bus.subscribe("notes.small") as deliveries:
        requests = Requests(bus, monkeypatch)
        delivery = await _next(deliveries)
        loaded = cast("dict[str, Any]", await delivery.load())
        assert [item.name async for item in delivery.items()] == ["weight", "bias"]
        assert [event.spec.name async for event in delivery.slices()] == ["weight", "bias"]
        bias = await delivery.item("bias")
        assert requests.seen == ["deliveries"]
    for name, value in values.items():
        assert numpy.array_equal(loaded[name], value)
    assert numpy.array_equal(cast("Any", bias.value), values["bias"])


async def test_a_small_message_is_saved_as_a_large_one_is(bus: Client, tmp_path: Path) -> None:
    """Whole or one item of it."""
    await bus.publish("notes.small", {"weight": numpy.arange(10.0), "bias": numpy.ones(3)})
    async with bus.subscribe("notes.small") as deliveries:
        delivery = await _next(deliveries)
        await delivery.save(tmp_path / "all.safetensors")
        await delivery.save(tmp_path / "one.safetensors", item="bias")
        fetched = await bus.fetch(delivery.id)
        await fetched.save(tmp_path / "fetched.safetensors")
    assert (tmp_path / "all.safetensors").read_bytes() == (tmp_path / "fetched.safetensors").read_bytes()
    assert 0 < (tmp_path / "one.safetensors").stat().st_size < (tmp_path / "all.safetensors").stat().st_size


async def test_deliveries_are_fetched_ahead(bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small messages take few requests, come in order, once each, and acks that wait go together."""
    ids = [(await bus.publish("notes.many", str(number).encode())).id for number in range(40)]
    async with bus.subscribe("notes.many", "worker", prefetch=16) as deliveries:
        requests = Requests(bus, monkeypatch)
        got = [await _next(deliveries) for _ in ids]
        assert [delivery.id for delivery in got] == ids
        assert await got[7].load() == b"7"
        await asyncio.gather(*(delivery.ack() for delivery in got))
        assert requests.seen.count("acks") == 1
        assert len(requests.seen) <= 8
        for delivery in got:
            with pytest.raises(AlreadySettled):
                await delivery.ack()
    info = await bus.consumer("worker")
    assert (info.ack_pending, info.backlog) == (0, 0)


async def test_what_was_fetched_ahead_is_given_back_unread(bus: Client) -> None:
    """Leaving, what nobody took goes to others at once and counts as no attempt; what was taken does."""
    for number in range(4):
        await bus.publish("notes.ahead", str(number).encode())
    async with bus.subscribe("notes.ahead", "worker", ack_wait=600, prefetch=4, max_deliver=2) as deliveries:
        taken = await _next(deliveries)
    async with bus.subscribe("notes.ahead", "worker", ack_wait=600, prefetch=4, max_deliver=2) as deliveries:
        again = [await _next(deliveries) for _ in range(4)]
        attempts = {delivery.id: delivery.attempt for delivery in again}
        assert attempts.pop(taken.id) == 2
        assert list(attempts.values()) == [1, 1, 1]


async def test_what_waits_here_stays_ours(bus: Client) -> None:
    """Heartbeats keep deliveries that were fetched ahead for as long as they wait to be taken."""
    for number in range(3):
        await bus.publish("notes.wait", str(number).encode())
    async with (
        bus.subscribe("notes.wait", "worker", ack_wait=0.4, prefetch=3) as one,
        bus.subscribe("notes.wait", "worker", ack_wait=0.4) as two,
    ):
        first = await _next(one)
        assert await two.receive(timeout=1.2) is None
        rest = [await _next(one) for _ in range(2)]
        assert [delivery.attempt for delivery in (first, *rest)] == [1, 1, 1]
        await asyncio.gather(*(delivery.ack() for delivery in (first, *rest)))


async def test_an_ack_of_a_batch_fails_by_itself(bus: Client) -> None:
    """What is wrong with one of the acknowledgements that went together is raised there, and only there."""
    for number in range(3):
        await bus.publish("notes.batch", str(number).encode())
    async with bus.subscribe("notes.batch", "worker", prefetch=3) as deliveries:
        first, second, third = [await _next(deliveries) for _ in range(3)]
        await _second(bus, _given(second), second).ack()
        outcomes = await asyncio.gather(
            *(delivery.ack() for delivery in (first, second, third)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), AlreadySettled, type(None)]


async def test_an_ack_is_durable_when_it_returns(tmp_path: Path) -> None:
    """Whatever batch it went with: the broker is killed right after, and does not hand it over again."""
    data = tmp_path / "data"
    settings = ClientSettings(poll_wait=1.0, retry_for=2.0)
    async with running_broker(data) as url, Client(url, settings=settings) as bus:
        for number in range(10):
            await bus.publish("notes.durable", str(number).encode())
        async with bus.subscribe("notes.durable", "worker", ack_wait=0.1, prefetch=10) as deliveries:
            got = [await _next(deliveries) for _ in range(10)]
            await asyncio.gather(*(delivery.ack() for delivery in got))
            shutil.copytree(data, tmp_path / "copy")
    async with (
        running_broker(tmp_path / "copy") as url,
        Client(url, settings=settings) as bus,
        bus.subscribe("notes.durable", "worker", ack_wait=0.1, prefetch=10) as deliveries,
    ):
        assert await deliveries.receive(timeout=SHORT) is None


# --- dead letters ------------------------------------------------------------------------------------


async def test_a_refused_message_can_be_looked_at_and_replayed(bus: Client) -> None:
    """The letter says who refused it and why; replayed, the same worker gets it as a new message."""
    sent = await bus.publish("notes.bad", b"values", headers={"site": "a"}, key="round-1/a")
    async with bus.subscribe("notes.bad", "worker") as deliveries:
        await (await _next(deliveries)).term("not a model")
        (letter,) = [info async for info in bus.dead_letters()]
        assert letter.dead is not None
        assert (letter.topic, letter.dead.consumer, letter.dead.message) == ("dead.worker", "worker", sent.id)
        assert (letter.dead.reason, letter.dead.attempts) == ("not a model", 1)
        assert await (await bus.fetch(letter.id)).load() == b"values"
        again = await bus.replay(letter.id)
        assert (again.topic, again.key, again.dead) == ("notes.bad", "round-1/a", None)
        delivery = await _next(deliveries)
        assert (delivery.id, delivery.attempt, delivery.headers) == (again.id, 1, {"site": "a"})
        await delivery.ack()
    assert [info async for info in bus.dead_letters()] == []
    with pytest.raises(Conflict):
        await bus.replay(again.id)


async def test_a_message_that_is_always_given_back_dies(bus: Client) -> None:
    """After its attempts it lies on the topic that the consumer names; purging removes it."""
    await bus.publish("notes.bad", b"values")
    async with bus.subscribe(
        "notes.bad", "worker", max_deliver=2, dead_letter="graveyard.notes"
    ) as deliveries:
        for attempt in (1, 2):
            delivery = await _next(deliveries)
            assert delivery.attempt == attempt
            await delivery.nak()
        assert await deliveries.receive(timeout=SHORT) is None
    assert [info.topic async for info in bus.dead_letters("graveyard.*")] == ["graveyard.notes"]
    assert await bus.purge_dead_letters("graveyard.*") == 1
    assert [info async for info in bus.dead_letters()] == []


async def test_settings_are_checked_at_once(bus: Client) -> None:
    """Where they are written, and before anything is sent."""
    for wrong in (
        {"max_deliver": 0},
        {"backoff": (0,)},
        {"backoff": (1, 2), "max_deliver": 1},
        {"ack_wait": 0},
        {"start": 0},
        {"prefetch": 0},
        {"inactive_threshold": -1},
    ):
        with pytest.raises(InvalidRequest):
            bus.subscribe(">", **cast("Any", wrong))


async def test_the_consumer_of_a_client_that_is_gone_expires(tmp_path: Path) -> None:
    """An ephemeral consumer has a threshold; nobody has to delete it by hand."""
    async with running_broker(tmp_path / "data", BrokerSettings(sweep_interval=0.02)) as url:
        async with Client(url) as bus:
            subscription = bus.subscribe(">")
            await subscription.__aenter__()
            info = await bus.consumer(subscription.consumer)
            assert info.config.inactive_threshold == 300
            killed = bus.subscribe(">", inactive_threshold=0.05)
            await killed.__aenter__()
        async with Client(url) as bus:
            deadline = time.monotonic() + PROMPT
            while len(await bus.consumers()) == 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert [info.name for info in await bus.consumers()] == [subscription.consumer]
