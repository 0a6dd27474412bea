"""Connections break, brokers restart: the client goes on where it can, and says so where it cannot."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest
import uvloop

from tensorbus.bus.client import Client, ClientSettings, Progress, Receipt
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.testing import running_broker
from tensorbus.errors import (
    BrokerUnavailable,
    ClientClosed,
    DeliveryExpired,
    MessageAborted,
    NotFound,
    TensorbusError,
    TransferStalled,
)

SETTINGS = ClientSettings(idle_timeout=5, retry_for=10, poll_wait=1)
CONTAINER = {"w": np.random.default_rng(0).standard_normal((2000, 1500)).astype(np.float32)}
SIZE = CONTAINER["w"].nbytes
LARGE = {"w": np.random.default_rng(1).standard_normal(16_000_000).astype(np.float32)}
"""More than the buffers between two sockets of one machine hold."""


class CuttingProxy:
    """A TCP proxy that cuts connections after so many bytes, and whose broker may change.

    ``cuts_up`` and ``cuts_down`` are lists of byte counts: the first connection that carries so many bytes up
    or down is cut there, then the next count is in force. ``pace`` are the seconds that each 64 KiB takes;
    ``stop_up_at`` is the number of bytes after which a connection carries nothing more up, without an end.
    """

    def __init__(self) -> None:
        self.upstream = ""
        self.cuts_up: list[int] = []
        self.cuts_down: list[int] = []
        self.pace = 0.0
        self.stop_up_at: int | None = None
        self.carried_up = 0
        self.connections = 0
        self.verified = 0
        self.resumed: list[tuple[int, int]] = []
        """Of each request for a range: its first byte, and ``verified`` at that moment."""
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def running(self, upstream: str) -> AsyncGenerator[CuttingProxy]:
        self.upstream = upstream
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        # What waits in the proxy counts as delivered for the client, so it should not be much.
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut_all()

    def cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, port = self.upstream.removeprefix("http://").split(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, up_writer}
        self._writers |= pair
        both = [
            asyncio.create_task(self._carry(reader, up_writer, "up")),
            asyncio.create_task(self._carry(up_reader, writer, "down")),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        for each in pair:
            each.transport.abort()
        self._writers -= pair

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        cuts = self.cuts_up if way == "up" else self.cuts_down
        carried = 0
        try:
            while data := await reader.read(65536):
                cut = bool(cuts) and carried + len(data) >= cuts[0]
                if cut:
                    data = data[: cuts.pop(0) - carried]
                carried += len(data)
                if way == "up":
                    self.carried_up += len(data)
                    for start in re.findall(rb"Range: bytes=(\d+)-", data):
                        self.resumed.append((int(start), self.verified))
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self.pace)
                if way == "up" and self.stop_up_at is not None and carried > self.stop_up_at:
                    await asyncio.Event().wait()
                if cut:
                    return
        except OSError:
            pass


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncGenerator[CuttingProxy]:
    """A broker behind a proxy."""
    async with running_broker(tmp_path / "data") as url, CuttingProxy().running(url) as running:
        yield running


def _equal(got: object) -> bool:
    return np.array_equal(cast("dict[str, npt.NDArray[np.float32]]", got)["w"], CONTAINER["w"])


async def test_a_cut_download_resumes(proxy: CuttingProxy) -> None:
    """A download that is cut three times arrives whole, and no verified frame is asked for again."""
    async with Client(proxy.upstream) as direct:
        receipt = await direct.publish("models.cut", CONTAINER)
    async with Client(proxy.url, settings=SETTINGS) as bus:
        message = await bus.fetch(receipt.id)
        proxy.cuts_down[:] = [5_000_000, 3_000_001, 17]
        told: list[Progress] = []

        def hear(progress: Progress) -> None:
            told.append(progress)
            proxy.verified = progress.bytes_on_wire

        assert _equal(await message.load(progress=hear))
    assert not proxy.cuts_down
    assert len(proxy.resumed) == 3
    assert all(start == verified > 0 for start, verified in proxy.resumed)
    assert [one.bytes_on_wire for one in told] == sorted(one.bytes_on_wire for one in told)
    assert told[-1] == Progress(receipt.bytes_on_wire, receipt.bytes_on_wire, SIZE, SIZE, None)


async def test_a_cut_upload_goes_on(proxy: CuttingProxy) -> None:
    """An upload that is cut twice is stored once, and its progress never goes back."""
    proxy.cuts_up[:] = [4_000_000, 5_000_000]
    told: list[Progress] = []
    async with Client(proxy.url, settings=SETTINGS) as bus:
        receipt = await bus.publish("models.cut", CONTAINER, progress=told.append)
        assert not proxy.cuts_up
        assert not receipt.duplicate
        assert [info.id async for info in bus.messages()] == [receipt.id]
        assert _equal(await (await bus.fetch(receipt.id)).load())
    steps = [one.bytes_on_wire for one in told]
    assert steps == sorted(steps)
    assert told[-1] == Progress(receipt.bytes_on_wire, receipt.bytes_on_wire, SIZE, SIZE, None)


async def test_a_lost_answer_does_not_store_the_message_twice(proxy: CuttingProxy) -> None:
    """The broker sealed the message but its answer was lost: the retry finds it there and sends nothing."""
    # Carries "100 Continue" (25 bytes) and cuts into the answer proper.
    proxy.cuts_down[:] = [40]
    async with Client(proxy.url, settings=SETTINGS) as bus:
        receipt = await bus.publish("models.cut", CONTAINER)
        assert not receipt.duplicate
        assert [info.id async for info in bus.messages()] == [receipt.id]
    assert proxy.carried_up < 1.5 * SIZE


async def test_a_duplicate_key_costs_no_upload(proxy: CuttingProxy) -> None:
    """The second publish under a key gets the first one's id, marked duplicate, before its body is sent."""
    async with Client(proxy.url, settings=SETTINGS) as bus:
        first = await bus.publish("models.cut", CONTAINER, key="round-1/a")
        before = proxy.carried_up
        second = await bus.publish("models.cut", CONTAINER, key="round-1/a")
        assert (second.id, second.duplicate, first.duplicate) == (first.id, True, False)
        assert proxy.carried_up - before < 10_000


async def test_a_lost_ack_answer_is_no_error(proxy: CuttingProxy) -> None:
    """The ack arrived but its answer was lost: asking again succeeds, and the message is not redelivered."""
    async with Client(proxy.url, settings=SETTINGS) as bus:
        await bus.publish("notes.cut", b"1")
        async with bus.subscribe("notes.cut", "worker") as deliveries:
            delivery = await deliveries.receive(timeout=5)
            assert delivery is not None
            proxy.cut_all()
            proxy.cuts_down[:] = [5]
            await delivery.ack()
            assert not proxy.cuts_down
            assert await deliveries.receive(timeout=0.2) is None


@pytest.mark.parametrize("verb", ["ack", "term", "nak"])
async def test_a_settlement_that_never_arrived_is_not_taken_for_done(
    proxy: CuttingProxy, tmp_path: Path, verb: str
) -> None:
    """The request is lost, and by the time it is sent again the delivery was given back: who asked must not
    believe that it is settled. To be handed over again is all that a nak wants."""
    async with Client(proxy.url, settings=SETTINGS) as bus:
        await bus.publish("notes.cut", b"1")
        async with bus.subscribe("notes.cut", "worker") as deliveries:
            delivery = await deliveries.receive(timeout=5)
            assert delivery is not None
            async with aiohttp.ClientSession(proxy.upstream) as http:
                path = f"/v1/consumers/worker/deliveries/{delivery.token}/nak"
                assert (await http.post(path, json={"delay": 0})).status == 204
            proxy.cut_all()
            proxy.cuts_up[:] = [5]
            settle = {"ack": delivery.ack, "term": delivery.term, "nak": delivery.nak}[verb]
            if verb == "nak":
                await settle()
            else:
                with pytest.raises(DeliveryExpired):
                    await settle()
            assert not proxy.cuts_up
            again = await deliveries.receive(timeout=5)
            assert again is not None and again.attempt == 2
            await again.ack()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_restarted_broker_is_found_again(tmp_path: Path) -> None:
    """Download, upload and subscription each survive a restart of the broker in their midst."""
    proxy = CuttingProxy()
    proxy.pace = 0.01
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        impatient = ServerSettings(shutdown_timeout=0.1)
        url = await first.enter_async_context(running_broker(tmp_path / "data", settings=impatient))
        await stack.enter_async_context(proxy.running(url))
        bus = await stack.enter_async_context(Client(proxy.url, settings=SETTINGS))
        restarts: list[asyncio.Task[None]] = []

        async def restart() -> None:
            nonlocal first
            await first.aclose()
            first = await stack.enter_async_context(AsyncExitStack())
            proxy.upstream = await first.enter_async_context(running_broker(tmp_path / "data"))

        def restart_at_half(progress: Progress) -> None:
            if progress.bytes_on_wire > SIZE // 2 and not restarts:
                restarts.append(asyncio.create_task(restart()))

        receipt = await bus.publish("models.cut", CONTAINER, progress=restart_at_half)
        await restarts.pop()
        message = await bus.fetch(receipt.id)
        assert _equal(await message.load(progress=restart_at_half))
        await restarts.pop()
        async with bus.subscribe("models.*", "worker") as deliveries:
            restarting = asyncio.create_task(restart())
            delivery = await deliveries.receive(timeout=10)
            await restarting
            assert delivery is not None
            assert delivery.id == receipt.id
            await delivery.ack()
        assert [info.id async for info in bus.messages()] == [receipt.id]


async def test_a_broker_that_is_not_there_is_named(tmp_path: Path) -> None:
    """After ``retry_for`` without progress the call fails and says which broker did not answer."""
    url = f"http://127.0.0.1:{_free_port()}"
    async with Client(url, settings=ClientSettings(retry_for=0.3)) as bus:
        with pytest.raises(BrokerUnavailable, match=url):
            await bus.publish("models.cut", b"1")
        with pytest.raises(BrokerUnavailable, match=url):
            await bus.topics()


async def test_a_silent_broker_is_not_waited_for_forever() -> None:
    """A peer that accepts and then says nothing is given up after the idle time-out."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, settings=ClientSettings(idle_timeout=0.3, retry_for=0.0)) as bus:
            with pytest.raises(TensorbusError, match=r"0\.3 s"):
                await bus.publish("models.cut", b"1")
            with pytest.raises(TensorbusError, match=r"0\.3 s"):
                await bus.topics()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_slow_link_is_no_reason_to_stop(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A transfer that takes many times the idle time-out goes through, on either event loop.

    The broker verifies every frame: a buffer that was used again before it had left would not pass.
    """

    async def transfer() -> None:
        async with running_broker(tmp_path) as url, CuttingProxy().running(url) as proxy:
            proxy.pace = 0.005
            settings = ClientSettings(idle_timeout=0.5, retry_for=0.0)
            async with Client(proxy.url, settings=settings) as bus:
                receipt = await bus.publish("models.cut", LARGE, codec="int8")
                got = cast("dict[str, npt.NDArray[np.float32]]", await (await bus.fetch(receipt.id)).load())
                assert np.abs(got["w"] - LARGE["w"]).max() < 0.1

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(transfer())


async def test_a_stalled_upload_is_given_up(proxy: CuttingProxy) -> None:
    """An upload of which no byte moves any more ends after the idle time-out, and nothing is stored."""
    proxy.stop_up_at = 5_000_000
    async with Client(proxy.url, settings=ClientSettings(idle_timeout=0.5, retry_for=0.0)) as bus:
        with pytest.raises(TransferStalled):
            await bus.publish("models.cut", LARGE)
        assert await bus.topics() == []


async def test_a_slow_reader_loses_nothing(tmp_path: Path) -> None:
    """A reader that takes longer over an item than the broker waits is cut off, and resumes."""
    container = {f"w{number}": np.full(4_000_000, number, np.float32) for number in range(3)}
    settings = ServerSettings(idle_timeout=0.2)
    async with (
        running_broker(tmp_path / "data", settings=settings) as url,
        Client(url, settings=SETTINGS) as bus,
    ):
        receipt = await bus.publish("models.cut", container)
        async for item in (await bus.fetch(receipt.id)).items():
            await asyncio.sleep(0.6)
            assert np.array_equal(cast("npt.NDArray[np.float32]", item.value), container[item.name])
            del container[item.name]
    assert not container


async def test_a_closed_client_says_so(tmp_path: Path) -> None:
    """Using a client after its block, or in a call that its closing interrupts, raises ClientClosed."""
    async with running_broker(tmp_path / "data") as url:
        async with Client(url) as bus:
            waiting = asyncio.create_task(_receive(bus))
            while not await bus.consumers():
                await asyncio.sleep(0.01)
        with pytest.raises(ClientClosed, match="closed"):
            await waiting
        with pytest.raises(ClientClosed, match="async with Client"):
            await bus.publish("models.cut", b"1")
        with pytest.raises(ClientClosed):
            bus.subscribe(">")


async def _receive(bus: Client) -> None:
    async with bus.subscribe("nothing.here", "worker") as deliveries:
        await deliveries.receive(timeout=30)


async def test_a_publisher_that_stops_leaves_no_message(tmp_path: Path) -> None:
    """A publish that is cancelled half-way stores nothing, and its follower hears that it was aborted."""
    half = asyncio.Event()

    async def stop_at(progress: Progress) -> None:
        if progress.bytes_on_wire > SIZE // 2:
            half.set()
            await asyncio.Event().wait()

    async with running_broker(tmp_path / "data") as url, Client(url, settings=SETTINGS) as bus:
        async with bus.subscribe("models.cut", follow=True) as deliveries:
            publishing = asyncio.create_task(bus.publish("models.cut", CONTAINER, progress=stop_at))
            await half.wait()
            delivery = await deliveries.receive(timeout=5)
            assert delivery is not None
            assert delivery.info.state == "open"
            loading = asyncio.create_task(delivery.load())
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            with pytest.raises(MessageAborted):
                await loading
        assert [info async for info in bus.messages()] == []
        with pytest.raises(NotFound):
            await bus.fetch(delivery.id)


@pytest.mark.parametrize("elements", [1 << 20, 4 << 20], ids=["in one request", "resumable"])
@pytest.mark.parametrize("ends", [True, False], ids=["and ends", "and gives up"])
@pytest.mark.parametrize("codec", ["none", "feedback | nf4"])
async def test_another_process_publishes_the_same_message(
    tmp_path: Path, codec: str, ends: bool, elements: int
) -> None:
    """A site that was started twice: both publish under one key, both hear of the one message stored."""
    container = {"w": np.arange(elements, dtype=np.float32)}
    reached, go_on, other_reached = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait_for_the_other(progress: Progress) -> None:
        if progress.bytes_on_wire and not reached.is_set():
            reached.set()
            await go_on.wait()

    async def stop_there(progress: Progress) -> None:
        if progress.bytes_on_wire and not ends:
            other_reached.set()
            await asyncio.Event().wait()

    async with running_broker(tmp_path / "data") as url, Client(url) as one, Client(url) as two:

        def publish(bus: Client, progress: Callable[[Progress], Awaitable[None]]) -> asyncio.Task[Receipt]:
            return asyncio.create_task(
                bus.publish("updates.twice", container, codec=codec, key="s1", progress=progress)
            )

        first = publish(one, wait_for_the_other)
        await asyncio.wait_for(reached.wait(), 10)
        second = publish(two, stop_there)
        if ends:
            stored = await second
            go_on.set()
            assert (await first).id == stored.id
        else:
            await asyncio.wait_for(other_reached.wait(), 10)
            go_on.set()
            second.cancel()
            stored = await first
        assert [info.id async for info in one.messages()] == [stored.id]
        loaded = cast("dict[str, npt.ArrayLike]", await (await one.fetch(stored.id)).load())
        assert np.allclose(loaded["w"], container["w"], rtol=0.2, atol=elements / 8)


async def test_a_message_is_followed_while_it_is_published(tmp_path: Path) -> None:
    """A follower has the first slices while the publisher has not yet sent the last."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait_for_follower(progress: Progress) -> None:
        if progress.bytes_on_wire > SIZE // 2:
            arrived.set()
            await go_on.wait()

    async with (
        running_broker(tmp_path / "data") as url,
        Client(url, settings=SETTINGS) as bus,
        bus.subscribe("models.cut", "follower", follow=True) as deliveries,
    ):
        publishing = asyncio.create_task(bus.publish("models.cut", CONTAINER, progress=wait_for_follower))
        await arrived.wait()
        delivery = await deliveries.receive(timeout=5)
        assert delivery is not None
        got = np.zeros(CONTAINER["w"].size, np.float32)
        async for event in delivery.slices():
            assert go_on.is_set() or not publishing.done()
            event.codec.accumulate(event.payload, event.offset, got[event.offset :][: event.count], 1.0)
            go_on.set()
        receipt = await publishing
        assert receipt.id == delivery.id
        assert np.array_equal(got, CONTAINER["w"].ravel())
        await delivery.ack()
        assert await deliveries.receive(timeout=0.2) is None
