"""Error feedback from message to message: what advances it, and what must not."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.bus.client import Client, ClientSettings, Progress
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.residuals import MemoryResiduals, Residuals
from tensorbus.errors import NonFiniteValues, StoreInUse
from tensorbus.streaming.residual_files import FileResiduals

Arrays = dict[str, npt.NDArray[Any]]
TOPIC = "models.feedback"
CODEC = "feedback | nf4"
PROCESS = Path(__file__).with_name("feedback_publisher.py")
MESSAGES = 4


def message(number: int) -> Arrays:
    """One of a sequence: a tensor of several slices, and one of one."""
    random = np.random.default_rng(number)
    return {
        "long": random.normal(size=1_100_000).astype(np.float32),
        "short": random.normal(size=1000).astype(np.float32),
    }


async def received(bus: Client) -> list[Arrays]:
    """All messages as a subscriber decodes them, which knows nothing of the feedback."""
    return [cast(Arrays, await (await bus.fetch(info.id)).load()) async for info in bus.messages(TOPIC)]


async def digests(url: str) -> list[str | None]:
    """What is stored, to the bit."""
    async with Client(url) as bus:
        return [info.digest async for info in bus.messages(TOPIC)]


async def undisturbed(folder: Path, *, same: bool = False) -> list[str | None]:
    """The digests of the sequence, or of so many times its first message, when nothing goes wrong."""
    async with running_broker(folder / "quiet") as url, Client(url) as bus:
        for number in range(MESSAGES):
            await bus.publish(TOPIC, message(0 if same else number), CODEC, key=f"message-{number}")
        return await digests(url)


@asynccontextmanager
async def cutting(upstream: str, *cuts: int | str) -> AsyncGenerator[str]:
    """A proxy that cuts its connections after so many bytes upwards, or at an answer that holds a text."""
    left = list(cuts)
    host, port = upstream.removeprefix("http://").split(":")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        carried = 0
        while data := await reader.read(65536):
            carried += len(data)
            cut = left[0] if left else None
            if isinstance(cut, int) and up and carried >= cut:
                left.pop(0)
                return
            if isinstance(cut, str) and not up and cut.encode() in data:
                left.pop(0)
                return
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above = await asyncio.open_connection(host, int(port))
        both = [asyncio.create_task(carry(reader, above[1], True))]
        both.append(asyncio.create_task(carry(above[0], writer, False)))
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        for each in (writer, above[1]):
            each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
    assert not left


@pytest.mark.parametrize("kept", [None, "memory", "file"])
async def test_what_was_sent_in_all_differs_by_one_residual_only(tmp_path: Path, kept: str | None) -> None:
    """After any number of messages the sum of what arrived is that of what was meant, but for one message's
    error; without feedback the errors add up."""
    residuals: dict[str | None, Residuals] = {
        "memory": MemoryResiduals(),
        "file": FileResiduals(tmp_path / "residuals"),
    }
    constant = message(0)  # the same each time: without feedback its error adds up in full
    async with running_broker(tmp_path / "broker") as url, Client(url) as bus:
        for number in range(MESSAGES):
            await bus.publish(TOPIC, constant, CODEC, key=f"message-{number}", residuals=residuals.get(kept))
        got = await received(bus)
    for name, value in constant.items():
        once = np.abs(got[0][name] - value).mean()
        error = np.abs(sum(one[name] for one in got) - MESSAGES * value).mean()
        assert error < 2 * once < MESSAGES * once
    assert len({one["short"].tobytes() for one in got}) == MESSAGES


async def test_a_message_that_is_sent_again_has_the_same_bytes(tmp_path: Path) -> None:
    """Cut in the midst, just before its end, or when the broker has stored it and says so: every attempt
    encodes with the same residuals, and they advance once."""
    async with (
        running_broker(tmp_path / "broker") as broker,
        cutting(broker, 200_000, "201 Created", 622_000, "201 Created") as url,
        Client(url, settings=ClientSettings(retry_for=20)) as bus,
    ):
        for number in range(MESSAGES):
            await bus.publish(TOPIC, message(number), CODEC, key=f"message-{number}")
        assert await digests(broker) == await undisturbed(tmp_path)


async def test_a_key_that_is_stored_already_does_not_advance_them(tmp_path: Path) -> None:
    """Published a second time, with other values even, nothing is sent and nothing kept."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as bus:
        for number in range(MESSAGES):
            await bus.publish(TOPIC, message(number), CODEC, key=f"message-{number}")
            again = await bus.publish(TOPIC, message(99), CODEC, key=f"message-{number}")
            assert again.duplicate
        assert await digests(url) == await undisturbed(tmp_path)


async def test_a_message_that_fails_does_not_advance_them(tmp_path: Path) -> None:
    """One that cannot be encoded, one that is cancelled, one whose answer never came: the next is as if they
    had not been, unless the broker has them after all."""
    bad = message(50)
    bad["short"][-1] = np.nan
    async with running_broker(tmp_path / "broker") as url, Client(url) as bus:
        for number in range(MESSAGES):
            with pytest.raises(NonFiniteValues, match="'short'"):
                await bus.publish(TOPIC, bad, CODEC)
            begun = asyncio.Event()

            async def hold(progress: Progress, begun: asyncio.Event = begun) -> None:
                begun.set()
                await asyncio.Event().wait()

            held = asyncio.create_task(bus.publish(TOPIC, message(51), CODEC, progress=hold))
            await begun.wait()
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await held
            await bus.publish(TOPIC, message(number), CODEC, key=f"message-{number}")
        assert await digests(url) == await undisturbed(tmp_path)


async def test_messages_of_one_topic_wait_for_one_another(tmp_path: Path) -> None:
    """Published at the same time, each has the residuals of the one before, whichever that is."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as bus:
        await asyncio.gather(
            bus.publish("models.other", message(7), CODEC),
            *(bus.publish(TOPIC, message(0), CODEC) for _ in range(MESSAGES)),
        )
        assert await digests(url) == await undisturbed(tmp_path, same=True)


async def run(url: str, folder: Path, *arguments: object) -> int:
    """The publisher in a process of its own; its exit code."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), url, str(folder), *map(str, arguments)
    )
    return await asyncio.wait_for(process.wait(), 120)


@pytest.mark.parametrize("moment", ["sealed", "stored"])
@pytest.mark.parametrize("same", [True, False])
async def test_a_site_killed_between_seal_and_commit_finds_out_what_was_stored(
    tmp_path: Path, moment: str, same: bool
) -> None:
    """kill -9, then a restart that publishes the same message again or goes on with the next one: what is
    stored is what an undisturbed site would have sent."""
    async with running_broker(tmp_path / "broker") as url:
        assert await run(url, tmp_path / "residuals", 0, 1, moment) == -signal.SIGKILL
        if moment == "sealed":
            assert len(await digests(url)) == 1  # the message was one frame short
        assert await run(url, tmp_path / "residuals", 1 if same or moment == "sealed" else 2, 3) == 0
        stored = await digests(url)
    async with running_broker(tmp_path / "quiet") as url:
        assert await run(url, tmp_path / "quiet-residuals", 0, 3) == 0
        assert stored == await digests(url)


async def test_residuals_belong_to_one_process(tmp_path: Path) -> None:
    """A second one that is given the same folder by mistake is told so."""
    first = FileResiduals(tmp_path / "residuals")
    with pytest.raises(StoreInUse):
        FileResiduals(tmp_path / "residuals")
    first.close()
    FileResiduals(tmp_path / "residuals").close()
