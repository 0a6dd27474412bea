"""Promises of the facade for programs without an event loop: same results, same errors, no thread left."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.sync import SyncParticipant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.client.portal import Portal
from tensorbus.bus.client.sync import SyncClient
from tensorbus.bus.testing import running_broker
from tensorbus.errors import ClientClosed, InvalidName, NotFound

MODEL = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}


@pytest.fixture
def url(tmp_path: Path) -> Generator[str]:
    """A broker in a thread of its own."""
    stack = AsyncExitStack()
    portal = Portal()
    try:
        yield portal.call(lambda: stack.enter_async_context(running_broker(tmp_path / "data")))
    finally:
        portal.call(stack.aclose)
        portal.close()


def test_what_is_published_is_delivered_and_read(url: str, tmp_path: Path) -> None:
    """Publish, list, load, save, item by item, ack."""
    with SyncClient(url) as bus:
        receipt = bus.publish("models.demo", MODEL, codec="bf16", headers={"round": 1})
        assert [info.id for info in bus.messages("models.>")] == [receipt.id]
        assert [topic.topic for topic in bus.topics()] == ["models.demo"]
        deliveries = bus.subscribe("models.>", consumer="site", timeout=0.2)
        delivery = next(deliveries)
        assert (delivery.id, delivery.attempt, delivery.headers["round"]) == (receipt.id, 1, 1)
        loaded = cast("dict[str, np.ndarray[Any, Any]]", delivery.load())
        np.testing.assert_array_equal(loaded["weight"], MODEL["weight"])
        assert [item.name for item in delivery.items()] == ["weight", "bias"]
        delivery.save(tmp_path / "model.safetensors")
        assert (tmp_path / "model.safetensors").stat().st_size > 36
        delivery.ack()
        assert list(deliveries) == []
        into = {name: np.zeros_like(array) for name, array in MODEL.items()}
        assert bus.fetch(receipt.id).load(into) is into
        np.testing.assert_array_equal(into["bias"], MODEL["bias"])
        bus.delete(receipt.id)
        with pytest.raises(NotFound):
            bus.fetch(receipt.id)


def test_a_loop_that_is_left_gives_its_delivery_back(url: str) -> None:
    """As the async subscription does when its block is left."""
    with SyncClient(url) as bus:
        bus.publish("models.demo", MODEL)
        for delivery in bus.subscribe("models.>", consumer="site"):
            assert delivery.attempt == 1
            break
        for delivery in bus.subscribe("models.>", consumer="site"):
            delivery.ack()
            break
        assert next(bus.subscribe("models.>", consumer="site", timeout=0.1), None) is None


def test_errors_are_those_of_the_async_client(url: str) -> None:
    """And a closed client says so."""
    with SyncClient(url) as bus, pytest.raises(InvalidName, match=r"models\.\."):
        bus.publish("models..demo", MODEL)
    with pytest.raises(ClientClosed):
        bus.publish("models.demo", MODEL)
    bus.close()


def test_no_thread_is_left_behind(url: str) -> None:
    """Whatever was under way."""
    before = set(threading.enumerate())
    with SyncClient(url) as bus:
        bus.publish("models.demo", MODEL)
        assert set(threading.enumerate()) > before
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)  # threads of the pool end by themselves
    assert not {thread.name for thread in set(threading.enumerate()) - before if "portal" in thread.name}


def test_a_client_that_one_thread_closes_is_closed_for_those_that_wait_and_close_too(url: str) -> None:
    """Nobody waits for ever, and nobody hears of a cancellation that he did not ask for."""
    for _ in range(10):
        bus = SyncClient(url)
        waits = threading.Event()
        heard: list[type[BaseException] | None] = []

        def told(work: Callable[[], object], heard: list[type[BaseException] | None] = heard) -> None:
            try:
                work()
                heard.append(None)
            except BaseException as error:
                heard.append(type(error))

        async def forever(waits: threading.Event = waits) -> None:
            waits.set()
            await asyncio.Event().wait()

        works = [lambda: bus.portal.call(forever), bus.close, bus.close]  # noqa: B023 - they end in this turn
        threads = [threading.Thread(target=told, args=(work,), daemon=True) for work in works]
        threads[0].start()
        assert waits.wait(10)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert sorted(map(str, heard)) == sorted(map(str, (ClientClosed, None, None)))


async def test_a_loop_that_is_let_go_of_in_an_event_loop_gives_its_delivery_back(url: str) -> None:
    """Python may collect a generator in any thread, also in one that must not wait."""
    bus = SyncClient(url)
    await asyncio.to_thread(bus.publish, "models.demo", MODEL)
    deliveries = bus.subscribe("models.>", consumer="site")
    held = await asyncio.to_thread(next, deliveries)
    deliveries.close()
    again = bus.subscribe("models.>", consumer="site", timeout=20)
    given_back = await asyncio.to_thread(next, again, None)
    assert given_back is not None
    assert (given_back.id, given_back.attempt) == (held.id, 2)
    await asyncio.to_thread(again.close)
    await asyncio.to_thread(bus.close)


async def test_it_is_not_for_event_loops(url: str) -> None:
    """It would hold the loop up."""
    bus = SyncClient(url)
    with pytest.raises(RuntimeError, match="async client"):
        bus.topics()
    await asyncio.to_thread(bus.close)


def test_several_threads_share_a_client(url: str) -> None:
    """Each gets its own answer."""
    with SyncClient(url) as bus:
        ids: list[str] = []

        def publish(number: int) -> None:
            ids.append(bus.publish(f"models.t{number}", MODEL, headers={"number": number}).id)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(info.id for info in bus.messages("models.>")) == sorted(ids)


def test_a_plain_loop_takes_part_in_a_federation(url: str) -> None:
    """Two sites in threads, three rounds: the final model is what averaging gives."""
    portal = Portal()

    async def aggregate() -> None:
        async with Client(url) as bus:
            await bus.publish("fl.job.seed", MODEL)
            spec = JobSpec(job="job", sites=2, rounds=3, quorum=2, deadline=60)
            await Aggregator(bus, spec, init=None, listener=lambda _: None).run()

    running = asyncio.run_coroutine_threadsafe(aggregate(), portal.loop)
    finals: dict[str, dict[str, Any]] = {}

    def train(site: str, step: float, examples: int) -> None:
        with SyncParticipant(url, job="job", site=site) as participant:
            rounds: list[int] = []
            for task in participant.rounds():
                rounds.append(task.round)
                model = cast("dict[str, Any]", task.load())
                receipt = task.submit({name: array + step for name, array in model.items()}, examples)
                assert receipt is not None and task.spec.rounds == 3
            assert rounds == [1, 2, 3]
            finals[site] = cast("dict[str, Any]", participant.final.load())

    sites = [threading.Thread(target=train, args=arguments) for arguments in (("a", 1.0, 1), ("b", 3.0, 3))]
    for site in sites:
        site.start()
    for site in sites:
        site.join(60)
    running.result(60)
    portal.close()
    for final in finals.values():
        np.testing.assert_allclose(final["weight"], MODEL["weight"] + 3 * 2.5)
    assert set(finals) == {"a", "b"}
