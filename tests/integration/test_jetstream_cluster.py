"""Three NATS servers, of which any one may die: transfers and settlements go on, and all is there, once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from storing import Gateways, NatsServers, Network, Traffic
from tensorbus import Client
from tensorbus.bus.client import ClientSettings


@pytest.fixture
def servers(tmp_path: Path) -> Generator[NatsServers]:
    """A cluster for one test, which spoils it."""
    with NatsServers(tmp_path / "nats", 3) as running:
        yield running


@pytest.fixture
def gateways(tmp_path: Path, servers: NatsServers) -> Generator[Gateways]:
    """Two brokers."""
    with Gateways(tmp_path, servers.address) as running:
        for _ in range(2):
            running.start()
        running.leader()
        for number in range(2):
            running.ready(number)
        yield running


async def test_each_server_is_killed_in_turn(gateways: Gateways, servers: NatsServers) -> None:
    """While publishers and workers are busy at both brokers; each server comes back before the next goes."""
    traffic = Traffic()
    async with Client(gateways.urls[0]) as first, Client(gateways.urls[1]) as second:
        traffic.begin(first, "a")
        traffic.begin(second, "b")
        for number in range(3):
            await traffic.more(2)
            servers.kill(number)
            await traffic.more(4)
            servers.start(number)
            await asyncio.to_thread(servers.wait)
            await asyncio.to_thread(servers.wait_for_replicas)
        await traffic.more(2)
        await traffic.end(first)
        listed = [info.id async for info in first.messages("big")]
    assert sorted(listed) == sorted(traffic.stored.values())


async def test_the_leader_is_killed_amid_everything(gateways: Gateways) -> None:
    """A broker this time, while publishers and workers are busy at another one."""
    traffic = Traffic()
    leader = gateways.leader()
    async with Client(gateways.urls[1 - leader]) as bus:
        traffic.begin(bus, "a")
        traffic.begin(bus, "b")
        await traffic.more(3)
        gateways.kill(leader)
        await traffic.more(3)
        await traffic.end(bus)
        listed = [info.id async for info in bus.messages("big")]
    assert sorted(listed) == sorted(traffic.stored.values())


@pytest.fixture
def network(tmp_path: Path) -> Generator[Network]:
    """A network of its own for each of three servers and two brokers."""
    if (missing := Network.missing()) is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with Network(5) as running:
        yield running


@pytest.fixture
def far_servers(tmp_path: Path, network: Network) -> Generator[NatsServers]:
    """Three servers in their networks."""
    with NatsServers(tmp_path / "nats", 3, network=network) as running:
        yield running


async def test_networks_are_long_and_bad_and_cut(
    tmp_path: Path, network: Network, far_servers: NatsServers
) -> None:
    """Packets are late, lost and overtake each other between all servers, brokers and clients.

    In the midst of it one server cannot be reached, then the broker that leads, then no server. Each time
    what can go on does, and all of it does when it heals.
    """
    with Gateways(tmp_path, far_servers.address, network, first=3) as gateways:
        for _ in range(2):
            gateways.ready(gateways.start())
        network.slow_down(delay=0.02, jitter=0.01, loss=0.015)
        traffic = Traffic(600 << 10, ack_wait=5)
        patient = ClientSettings(retry_for=300)
        urls = gateways.urls
        async with Client(urls[0], settings=patient) as first, Client(urls[1], settings=patient) as second:
            traffic.begin(first, "a")
            traffic.begin(second, "b")
            await traffic.more(2)
            network.cut(0)
            await traffic.more(2)
            network.heal(0)
            await asyncio.to_thread(far_servers.wait_for_replicas)
            leader = gateways.leader()
            network.cut(3 + leader)
            assert await asyncio.to_thread(gateways.leader, other_than=leader) == 1 - leader
            await traffic.more(1)
            network.heal(3 + leader)
            await traffic.more(1)
            for number in range(3):
                network.cut(number)
            await asyncio.sleep(3)
            for number in range(3):
                network.heal(number)
            await traffic.more(2)
            await traffic.end(first)
            listed = [info.id async for info in first.messages("big")]
    assert sorted(listed) == sorted(traffic.stored.values())
