"""A large message goes on where it was cut: nothing that the broker has is encoded or sent again."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client, ClientSettings, Progress, Receipt, publishing
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.container import ContainerEncoder, EncodedFrame
from tensorbus.streaming.resumption import Resumption

Arrays = dict[str, npt.NDArray[Any]]
SETTINGS = ClientSettings(idle_timeout=10, retry_for=20)
TOPIC = "models.cut"
PROCESS = Path(__file__).with_name("resuming_publisher.py")
CODECS = ["none", "fp16", "int8", "nf4", "lossless", "delta | nf4", "same | none", "feedback | nf4"]


def container(seed: int = 0) -> Arrays:
    """About 24 MB; some values are clipped by fp16."""
    random = np.random.default_rng(seed)
    large = random.standard_normal(6_000_000).astype(np.float32)
    large[::100_000] = 1e9
    return {"a": random.standard_normal(1000).astype(np.float32), "w": large}


CONTAINER = container()
BASE = {"a": CONTAINER["a"], "w": CONTAINER["w"] + (np.arange(6_000_000) % 7 == 0).astype(np.float32)}


class Recorded(ContainerEncoder):
    """Notes of each pass the slices that the broker had before it, and those that were encoded in it."""

    passes: list[tuple[int, int]]
    made: list[Recorded]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.passes = []
        self.made.append(self)

    def frames(
        self, acquire: Callable[[], memoryview], threads: int = 1, there: Resumption | None = None
    ) -> Generator[EncodedFrame]:
        before, had = self.encoded, 0 if there is None else there.slices
        try:
            yield from super().frames(acquire, threads, there)
        finally:
            self.passes.append((had, self.encoded - before))


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The encoders that clients of this process make."""
    Recorded.made = []
    monkeypatch.setattr(publishing, "ContainerEncoder", Recorded)
    return Recorded.made


class Place:
    """A broker that is always at the same address behind a proxy, which cuts connections.

    Attributes:
        cuts: each the number of bytes after which the first connection that carries so many up is cut.
        answers: each a text; the first answer that holds it does not arrive.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.cuts: list[int] = []
        self.answers: list[bytes] = []
        self.upstream = ("", 0)
        self.url = ""
        self.direct = ""
        self.server: Server | None = None

    @asynccontextmanager
    async def broker(self) -> AsyncGenerator[None]:
        """The broker runs."""
        async with (
            Broker(FileStore(self.data)) as broker,
            Server(broker, ServerSettings(port=0, shutdown_timeout=0.1)) as server,
        ):
            self.direct = server.url
            host, port = server.url.removeprefix("http://").split(":")
            self.upstream = (host, int(port))
            yield

    @asynccontextmanager
    async def proxy(self) -> AsyncGenerator[None]:
        """The address is there."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above = await asyncio.open_connection(*self.upstream)
        except OSError:
            writer.transport.abort()
            return
        both = [
            asyncio.create_task(self._carry(reader, above[1], up=True)),
            asyncio.create_task(self._carry(above[0], writer, up=False)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        above[1].close()  # what has been carried arrives
        writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        carried = 0
        while data := await reader.read(65536):
            if up and self.cuts and carried + len(data) >= self.cuts[0]:
                writer.write(data[: self.cuts.pop(0) - carried])
                await writer.drain()
                return
            if not up and self.answers and self.answers[0] in data:
                self.answers.pop(0)
                return
            carried += len(data)
            writer.write(data)
            await writer.drain()

    async def received(self) -> int:
        """Bytes of bodies that this process of the broker has got."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.direct}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("tensorbus_received_bytes_total "):
                    return int(float(line.split()[1]))
        raise AssertionError("there is no such figure")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Place]:
    """A broker behind its proxy."""
    found = Place(tmp_path / "data")
    async with found.broker(), found.proxy():
        yield found


def client(place: Place) -> Client:
    """One that knows the base."""
    return Client(place.url, settings=SETTINGS, bases=[BASE])


async def quiet(tmp_path: Path, codec: str) -> Receipt:
    """The receipt of the same message when nothing goes wrong."""
    there = Place(tmp_path / "quiet")
    async with there.broker(), there.proxy(), client(there) as bus:
        return await bus.publish(TOPIC, CONTAINER, codec)


@pytest.mark.parametrize("codec", CODECS)
async def test_a_cut_message_goes_on(
    place: Place, tmp_path: Path, encoders: list[Recorded], codec: str
) -> None:
    """Cut three times: the same message, each byte got once by the broker, each stored slice made once."""
    expected = await quiet(tmp_path, codec)
    encoders.clear()
    size = expected.bytes_on_wire
    place.cuts[:] = [size // 3, size // 5, size // 4]
    told: list[Progress] = []
    async with client(place) as bus:
        got = await bus.publish(TOPIC, CONTAINER, codec, progress=told.append)
        assert not place.cuts
        assert [info.id async for info in bus.messages()] == [got.id]
    assert (got.digest, got.clipped, got.frames) == (expected.digest, expected.clipped, expected.frames)
    assert got.clipped == ({"w": 60} if codec == "fp16" else {})
    assert await place.received() == size
    assert got.resumed > size // 3
    [one] = encoders
    had = [begun for begun, _ in one.passes]
    assert len(had) == 4
    assert had == sorted(had)
    assert had[-1] > 0
    # Each pass begins with the first slice that the broker had not got whole, and the last goes to the end.
    slices = got.frames - 3
    assert one.passes[-1] == (had[-1], slices - had[-1])
    steps = [progress.bytes_on_wire for progress in told]
    assert steps == sorted(steps)
    assert steps[-1] == size


async def test_a_lost_answer_is_asked_for(place: Place, encoders: list[Recorded]) -> None:
    """The broker has acknowledged, nobody heard it: nothing is sent again, and it is no duplicate."""
    place.answers[:] = [b"Tensorbus-Receipt"]
    async with client(place) as bus:
        got = await bus.publish(TOPIC, CONTAINER, key="round-1/a")
        assert not place.answers
        assert not got.duplicate
        assert await place.received() == got.bytes_on_wire
        again = await bus.publish(TOPIC, CONTAINER, key="round-1/a")
        assert (again.id, again.duplicate) == (got.id, True)
    assert [len(one.passes) for one in encoders] == [1, 0]


@pytest.mark.parametrize("codec", ["none", "lossless", "feedback | nf4"])
async def test_a_message_goes_on_over_a_restart_of_the_broker(
    tmp_path: Path, encoders: list[Recorded], codec: str
) -> None:
    """What was whole on its disk is not sent again."""
    expected = await quiet(tmp_path, codec)
    encoders.clear()
    place = Place(tmp_path / "data")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(place.broker())
        await stack.enter_async_context(place.proxy())
        bus = await stack.enter_async_context(client(place))
        half, back = asyncio.Event(), asyncio.Event()

        async def hold(progress: Progress) -> None:
            if progress.bytes_on_wire > expected.bytes_on_wire // 2 and not back.is_set():
                half.set()
                await back.wait()

        publishing = asyncio.create_task(bus.publish(TOPIC, CONTAINER, codec, progress=hold))
        await half.wait()
        before = await place.received()
        await first.aclose()
        await stack.enter_async_context(place.broker())
        back.set()
        got = await publishing
        assert got.digest == expected.digest
        assert got.resumed > before - (2 << 20)
        assert await place.received() == expected.bytes_on_wire - got.resumed


async def test_an_upload_that_is_gone_begins_anew(place: Place) -> None:
    """Given up at the broker, or expired: the message is published all the same, whole."""
    place.cuts[:] = [10_000_000]
    gone: list[str] = []

    async def give_up() -> None:
        async with aiohttp.ClientSession(place.direct) as http:
            while not gone:
                async with http.get("/v1/messages", params={"state": "open"}) as answer:
                    opened = (await answer.json())["messages"]
                if opened and not place.cuts:
                    await http.delete(f"/v1/uploads/{opened[0]['id']}", headers={"Tus-Resumable": "1.0.0"})
                    gone.append(opened[0]["id"])

    giving_up = asyncio.create_task(give_up())
    async with client(place) as bus:
        got = await bus.publish(TOPIC, CONTAINER)
        await giving_up
        loaded = cast(Arrays, await (await bus.fetch(got.id)).load())
    assert np.array_equal(loaded["w"], CONTAINER["w"])


async def stopped(place: Place, values: object, codec: str | None, key: str) -> None:
    """A publication that is cancelled half-way."""
    half = asyncio.Event()

    async def hold(progress: Progress) -> None:
        if progress.bytes_on_wire > 2_000_000:
            half.set()
            await asyncio.Event().wait()

    async with client(place) as bus:
        task = asyncio.create_task(bus.publish(TOPIC, values, codec, key=key, progress=hold))
        await half.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


OTHERS: list[tuple[str, Callable[[Arrays], object], str | None]] = [
    ("another value", lambda values: values | {"w": values["w"] + np.float32(1)}, "int8"),
    ("another codec", lambda values: values, "none"),
    ("another name", lambda values: {"b": values["a"], "w": values["w"]}, "int8"),
    ("another dtype", lambda values: values | {"w": values["w"].astype(np.float64)}, "int8"),
    ("one value of the last frame", lambda values: values | {"w": _changed(values["w"])}, "int8"),
]


def _changed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    other = values.copy()
    other[-1] += 1
    return other


@pytest.mark.parametrize(("change", "codec"), [other[1:] for other in OTHERS], ids=[one[0] for one in OTHERS])
async def test_another_message_under_the_same_key_begins_anew(
    place: Place, change: Callable[[Arrays], object], codec: str | None
) -> None:
    """Never a message of two halves: what is stored is what the second call published, all of it."""
    await stopped(place, CONTAINER, "int8", "k")
    async with client(place) as bus:
        got = await bus.publish(TOPIC, change(CONTAINER), codec, key="k")
        assert got.resumed == 0
        [info] = [info async for info in bus.messages()]
    other = Place(place.data.with_name("other"))
    async with other.broker(), other.proxy(), client(other) as bus:
        assert (await bus.publish(TOPIC, change(CONTAINER), codec)).digest == got.digest == info.digest


async def test_a_later_call_goes_on_under_the_callers_key(place: Place, encoders: list[Recorded]) -> None:
    """The same container, codec and key: the rest is sent. Without a key of the caller's nothing is left."""
    await stopped(place, CONTAINER, "int8", "k")
    encoders.clear()
    async with client(place) as bus:
        got = await bus.publish(TOPIC, CONTAINER, "int8", key="k")
        assert got.resumed >= 1_000_000
        assert await place.received() == got.bytes_on_wire
        [one] = encoders
        assert one.encoded == got.frames - 3 - one.passes[-1][0]
        assert [info async for info in bus.messages()]


async def run(url: str, source: str, codec: str, key: str, seed: int, kill_at: int | None) -> list[str]:
    """The publisher in a process of its own, killed at so many bytes; what it said last."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), url, source, codec, key, str(seed), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(60):
        async for line in process.stdout:
            said = line.decode().split()
            if said[0] == "at" and kill_at is not None and int(said[1]) > kill_at:
                process.send_signal(signal.SIGKILL)
                break
        await process.wait()
    return said


@pytest.mark.parametrize("source", ["memory", "file"])
@pytest.mark.parametrize("codec", ["none", "nf4", "lossless"])
async def test_a_killed_publisher_goes_on_in_the_next_process(
    place: Place, tmp_path: Path, source: str, codec: str
) -> None:
    """kill -9 in the midst; started again with the same key, it sends what is missing, encoding only that."""
    path = tmp_path / "model.safetensors"
    save_file(container(3), path)
    where = source if source == "memory" else str(path)
    await run(place.url, where, codec, "round-1/a", 3, kill_at=2_000_000)
    done = await run(place.url, where, codec, "round-1/a", 3, kill_at=None)
    assert done[0] == "done"
    resumed, encoded = int(done[2]), int(done[3])
    assert resumed > 500_000
    async with client(place) as bus:
        [info] = [info async for info in bus.messages()]
        assert info.id == done[1]
        assert await place.received() == info.bytes
        assert encoded < info.frames - 3
        fresh = await run(place.url, where, codec, "round-2/a", 3, kill_at=None)
        assert (await bus.message(fresh[1])).digest == info.digest


async def test_a_file_that_was_replaced_begins_anew(place: Place, tmp_path: Path) -> None:
    """The next process finds another file under the same name: none of the first one's bytes are used."""
    path = tmp_path / "model.safetensors"
    save_file(container(3), path)
    await run(place.url, str(path), "none", "k", 0, kill_at=2_000_000)
    path.unlink()
    save_file(container(4), path)
    done = await run(place.url, str(path), "none", "k", 0, kill_at=None)
    assert done[2] == "0"
    async with client(place) as bus:
        loaded = cast(Arrays, await (await bus.fetch(done[1])).load())
        assert np.array_equal(loaded["w"], container(4)["w"])


async def serving(data: Path, port: int) -> tuple[asyncio.subprocess.Process, str]:
    """A broker in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tensorbus",
        "serve",
        "--json",
        "--port",
        str(port),
        "--data",
        str(data),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, json.loads(await process.stdout.readline())["url"]


async def arrived(url: str, more_than: int) -> None:
    """Wait until the broker has so many bytes of the one message that is being published."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/v1/messages", params={"state": "open"}) as answer:
                (message,) = (await answer.json())["messages"]
            if message["bytes"] > more_than:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("codec", ["none", "lossless"])
async def test_a_broker_that_is_killed_has_what_it_had(tmp_path: Path, codec: str) -> None:
    """kill -9 of the broker in the midst: it goes on behind the last whole frame on its disk."""
    place = Place(tmp_path / "data")
    expected = await quiet(tmp_path, codec)
    process, url = await serving(place.data, 0)
    port = int(url.rsplit(":", 1)[1])
    place.upstream = ("127.0.0.1", port)
    half, back = asyncio.Event(), asyncio.Event()

    async def hold(progress: Progress) -> None:
        if progress.bytes_on_wire > expected.bytes_on_wire // 2 and not back.is_set():
            half.set()
            await back.wait()

    try:
        async with place.proxy(), client(place) as bus:
            publishing = asyncio.create_task(bus.publish(TOPIC, CONTAINER, codec, progress=hold))
            await half.wait()
            await arrived(url, more_than=4 << 20)
            process.kill()
            await process.wait()
            process, _ = await serving(place.data, port)
            back.set()
            got = await publishing
            assert got.digest == expected.digest
            assert got.resumed > 4 << 20
    finally:
        process.kill()
        await process.wait()
