"""Deliveries: handed to one worker, kept while it is held, settled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tensorbus.bus.client import Client, ClientSettings, Delivery, Subscription
from tensorbus.bus.consumers import DeliveryInfo
from tensorbus.bus.testing import running_broker
from tensorbus.errors import AlreadySettled, ClientClosed, Conflict, InvalidName, NotFound

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
    return Delivery(connection, bases, given, of.info, of.entries, lambda _: None)


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
