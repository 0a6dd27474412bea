"""Three NATS servers, of which any one may die: transfers and settlements go on, and all is there, once."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from storing import Gateways, NatsServers, Network, Traffic
from tensorbus import Client


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
        await traffic.end()
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
        await traffic.end()
        listed = [info.id async for info in bus.messages("big")]
    assert sorted(listed) == sorted(traffic.stored.values())


@pytest.fixture
def network(tmp_path: Path) -> Generator[Network]:
    """A network of its own for each of three servers."""
    if not Network.possible():
        pytest.skip("network namespaces need root, and ip of iproute2")
    with Network(3) as running:
        yield running


async def test_networks_are_cut(tmp_path: Path, network: Network) -> None:
    """One server cannot be reached, another one, then none; each time it goes on when it heals."""
    with (
        NatsServers(tmp_path / "nats", 3, network=network) as servers,
        Gateways(tmp_path, servers.address) as gateways,
    ):
        for _ in range(2):
            gateways.ready(gateways.start())
        traffic = Traffic()
        async with Client(gateways.urls[0]) as first, Client(gateways.urls[1]) as second:
            traffic.begin(first, "a")
            traffic.begin(second, "b")
            network.slow_down()
            for number in range(2):
                await traffic.more(2)
                network.cut(number)
                await traffic.more(4)
                network.heal(number)
                await asyncio.to_thread(servers.wait_for_replicas)
            for number in range(3):
                network.cut(number)
            await asyncio.sleep(3)
            for number in range(3):
                network.heal(number)
            await traffic.more(4)
            await traffic.end()
            listed = [info.id async for info in first.messages("big")]
    assert sorted(listed) == sorted(traffic.stored.values())
