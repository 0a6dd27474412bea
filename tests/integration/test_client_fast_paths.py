"""Large transfers of the client, by threads past the HTTP library and, encrypted, through it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trustme

from tensorbus.bus.client import Client, Progress, TlsSettings
from tensorbus.bus.client.raw_body import RawBody
from tensorbus.bus.server import ServerSettings
from tensorbus.bus.server.tls import TlsFiles
from tensorbus.bus.testing import running_broker

VALUES = np.random.default_rng(1).standard_normal(5 << 20, np.float32)
"""20 MiB."""
MANY = {f"layer.{index}": VALUES[index : index + 1000] for index in range(6000)}
"""24 MB in frames of 4 KB."""


def arrays(container: object) -> dict[str, np.ndarray]:
    """What was read, as what it is."""
    return cast("dict[str, np.ndarray]", container)


async def through(bus: Client, container: dict[str, np.ndarray], told: list[Progress] | None = None) -> None:
    """Publish a container and have it back."""
    hear = None if told is None else told.append
    receipt = await bus.publish("models.large", container, progress=hear)
    got = arrays(await (await bus.fetch(receipt.id)).load(progress=hear))
    assert all(np.array_equal(got[name], container[name]) for name in container)


@pytest.mark.parametrize("container", [{"w": VALUES}, MANY], ids=["large frames", "small frames"])
async def test_large_messages_come_back(tmp_path: Path, container: dict[str, np.ndarray]) -> None:
    """Whatever the size of the frames, with and without somebody who hears of the progress."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        await through(bus, container)
        told: list[Progress] = []
        await through(bus, container, told)
    assert len(told) > 20


async def test_tls_takes_the_way_through_the_library(tmp_path: Path) -> None:
    """Encrypted, large messages come back as well: stored, and followed while they are published."""
    authority = trustme.CA()
    ca, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(own))
    settings = ServerSettings(tls=TlsFiles(own))
    async with (
        running_broker(tmp_path / "data", settings=settings) as url,
        Client(url, tls=TlsSettings(ca)) as bus,
        bus.subscribe("models.large", follow=True) as deliveries,
    ):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(through(bus, {"w": VALUES}))
            delivery = await anext(deliveries)
            got = arrays(await delivery.load())
        await delivery.ack()
    assert np.array_equal(got["w"], VALUES)


async def test_what_is_given_up_leaves_no_thread_at_work(tmp_path: Path) -> None:
    """Cancelled in the midst, either way, a client can be used again, and its container is free."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        for _ in range(3):
            begun = asyncio.Event()
            publishing = asyncio.create_task(
                bus.publish("models.large", {"w": VALUES}, progress=lambda _, begun=begun: begun.set())
            )
            await begun.wait()
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
        receipt = await bus.publish("models.large", {"w": VALUES})
        message = await bus.fetch(receipt.id)
        begun = asyncio.Event()
        loading = asyncio.create_task(message.load(progress=lambda _: begun.set()))
        await begun.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        got = arrays(await message.load())
    assert np.array_equal(got["w"], VALUES)


# --- bodies on a socket ------------------------------------------------------------------------------------

CHUNKS = b"5\r\nhello\r\n10;x=y\r\n, chunked world!\r\n0\r\n\r\n"
CONTENT = b"hello, chunked world!"


def received(pieces: list[bytes], early: bytes, length: int | None) -> bytes:
    """What a body gives of bytes that come in ``pieces``; raises what it raises."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        body = RawBody(ours, early, length)
        content, room = bytearray(), memoryview(bytearray(7))
        while not body.ended:
            try:
                content += room[: body.receive_into(room)]
            except BlockingIOError:
                if pieces:
                    theirs.sendall(pieces.pop(0))
                else:
                    theirs.shutdown(socket.SHUT_WR)
    return bytes(content)


@pytest.mark.parametrize("cut", range(len(CHUNKS) + 1))
def test_chunks_may_be_cut_anywhere(cut: int) -> None:
    """Wherever the network cuts a chunked body, and whatever of it came with the head, it is the same."""
    assert received([CHUNKS[cut:]], CHUNKS[:cut], None) == CONTENT
    assert received([CHUNKS[:cut], CHUNKS[cut:]], b"", None) == CONTENT


def test_a_body_of_known_length_ends_there() -> None:
    """What follows is not part of it."""
    assert received([b"lo world, and more"], b"hel", 11) == b"hello world"
    assert received([], b"", 0) == b""


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        ([b"hel"], 5),
        ([b"5\r\nhel"], None),
        ([b"5\r\nhello"], None),
        ([b"x\r\n"], None),
        ([b"3\r\nhello\r\n0\r\n\r\n"], None),
        ([b"5" * 200], None),
    ],
)
def test_a_broken_body_is_a_broken_connection(pieces: list[bytes], length: int | None) -> None:
    """Ended early, or no chunks at all: never taken for the whole."""
    with pytest.raises(ConnectionError):
        received(pieces, b"", length)
