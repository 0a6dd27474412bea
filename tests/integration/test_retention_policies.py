"""Policies themselves, and how long keys are remembered, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storing.retained import HOUR, Hands, a_broker, publish
from tensorbus.bus.broker import Broker
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import Conflict, InvalidName, InvalidRequest, NotFound


@pytest.fixture
def clock() -> Hands:
    """Virtual time."""
    return Hands()


@pytest.fixture
async def broker(tmp_path: Path, clock: Hands) -> AsyncIterator[Broker]:
    """A running broker."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        yield broker


# --- policies ----------------------------------------------------------------------------------------


async def test_a_topic_has_one_policy(broker: Broker) -> None:
    """Filters of two policies have no topic in common; a policy may be changed to another filter."""
    await broker.put_policy("p", PolicyConfig("a.*"))
    with pytest.raises(Conflict, match=r"policy 'p' for a\.\* select topics in common"):
        await broker.put_policy("q", PolicyConfig("*.b"))
    await broker.put_policy("q", PolicyConfig("a.*.c"))
    await broker.put_policy("p", PolicyConfig("b.*"))
    await broker.put_policy("r", PolicyConfig("a.*"))
    assert [policy.name for policy in await broker.policies()] == ["p", "q", "r"]
    assert (await broker.policy("p")).config == PolicyConfig("b.*")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"filter": "a..b"},
        {"filter": "a", "retention": "forever"},
        {"filter": "a", "max_messages": 0},
        {"filter": "a", "max_bytes": 1.5},
        {"filter": "a", "max_age": 0},
        {"filter": "a", "max_age": float("nan")},
        {"filter": "a", "duplicate_window": -1},
        {"filter": "a", "discard": "new"},
        {"filter": "a", "colour": "red"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(document: dict[str, object]) -> None:
    """Before it is looked at any further."""
    with pytest.raises((InvalidRequest, InvalidName)):
        PolicyConfig.from_json(document)


async def test_a_policy_survives_its_json(broker: Broker) -> None:
    """What is written is what is read, defaults filled in."""
    config = PolicyConfig("a.>", "workqueue", 5, 6, 7.5, "new", 8.0)
    assert PolicyConfig.from_json(config.to_json()) == config
    assert PolicyConfig.from_json({"filter": "a"}) == PolicyConfig("a")
    with pytest.raises(InvalidName):
        await broker.put_policy("no name", config)


# --- keys --------------------------------------------------------------------------------------------


async def test_a_key_is_remembered_for_its_window_over_restarts(tmp_path: Path, clock: Hands) -> None:
    """As long as its message is there, and until the window is over if that is later; then it is new."""
    async with a_broker(FileStore(tmp_path), clock) as broker:
        deleted = await publish(broker, "a", key="k")
        there = await publish(broker, "b", key="k")
        await broker.delete(deleted.id)
    clock.time += HOUR - 1
    async with a_broker(FileStore(tmp_path), clock) as broker:
        assert (await broker.receipt("a", "k")).id == deleted.id
        clock.time += 2
        await broker.sweep()
        with pytest.raises(NotFound):
            await broker.receipt("a", "k")
        assert (await broker.receipt("b", "k")).id == there.id
        assert not (await publish(broker, "a", key="k")).duplicate
        await broker.delete(there.id)
        await broker.sweep()
        assert not (await publish(broker, "b", key="k")).duplicate


async def test_a_policy_has_a_window_of_its_own(broker: Broker, clock: Hands) -> None:
    """Shorter or longer than the broker's."""
    await broker.put_policy("short", PolicyConfig("a", duplicate_window=10))
    await broker.put_policy("long", PolicyConfig("b", duplicate_window=10 * HOUR))
    for topic in "abc":
        await broker.delete((await publish(broker, topic, key="k")).id)
    for passed, known in ((9, "abc"), (11, "bc"), (HOUR + 1, "b"), (10 * HOUR + 1, "")):
        clock.time = 1_800_000_000.0 + passed
        await broker.sweep()
        found = ""
        for topic in "abc":
            try:
                await broker.receipt(topic, "k")
                found += topic
            except NotFound:
                pass
        assert found == known
