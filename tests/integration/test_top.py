"""`tensorbus top`: a broker's doings at a terminal, as a person sees them: what stands on the screen."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyte
import pytest
import trustme

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client, TlsSettings
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.tls import TlsFiles
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker

MODEL = {"w": np.linspace(-1, 1, 4096, dtype=np.float32)}
PATIENCE = 30.0
LEFT = b"\x1b[?1049l"
"""What a program sends when it leaves the alternate screen."""


class Terminal:
    """A terminal with `tensorbus top` in it.

    Attributes:
        raw: everything that the program wrote.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, descriptor: int, lines: int, columns: int
    ) -> None:
        self._process, self._descriptor = process, descriptor
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._news = asyncio.Event()
        self.raw = b""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            came = os.read(self._descriptor, 65536)
        except OSError:  # the program has gone
            came = b""
        if not came:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.raw += came
        self._stream.feed(came)
        self._news.set()

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, line by line."""
        return [line.rstrip() for line in self._screen.display]

    def resize(self, lines: int, columns: int) -> None:
        """Make the window larger or smaller."""
        self._screen.resize(lines, columns)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._descriptor, keys)

    async def until(self, seen: Callable[[str], object]) -> str:
        """Wait until the screen is as it should be; what it is then."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not seen("\n".join(self.lines)):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail("\n".join(["it did not come; on the screen is", *self.lines]))
        return "\n".join(self.lines)

    async def ended(self) -> int:
        """Wait until the program has ended; its exit code."""
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            while LEFT not in self.raw and b"tensorbus:" not in self.raw:
                self._news.clear()
                await self._news.wait()
            return code

    @property
    def echoes(self) -> bool:
        """Whether keys are shown and gathered into lines, as a shell wants it."""
        return bool(termios.tcgetattr(self._descriptor)[3] & (termios.ECHO & termios.ICANON or termios.ECHO))


@asynccontextmanager
async def top(
    *options: str, lines: int = 40, columns: int = 140, more: dict[str, str] | None = None
) -> AsyncGenerator[Terminal]:
    """`tensorbus top` with these options in a new terminal, and with more in its environment."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "top", *options),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment() | {"TERM": "xterm-256color"} | (more or {}),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    terminal = Terminal(process, ours, lines, columns)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)


async def printed(*options: str, code: int = 0) -> str:
    """What `tensorbus top` with these options prints where there is no terminal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "top", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment() | {"COLUMNS": "160"},
    )
    said = (await asyncio.wait_for(process.communicate(), PATIENCE))[0].decode()
    assert process.returncode == code, said
    return said


def environment() -> dict[str, str]:
    """Ours, without what would tell the command how to look or where to go."""
    told = ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR")
    return {k: v for k, v in os.environ.items() if k not in told and not k.startswith("TENSORBUS_")}


def row(text: str, *words: str) -> bool:
    """Whether there is a line with these words in this order."""
    return re.search(".*".join(map(re.escape, words)), text) is not None


async def test_a_snapshot_says_it_all(tmp_path: Path) -> None:
    """Messages, codecs, consumers with lag, redelivered and dead, and quotas, without a terminal."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        await bus.set_policy("few", PolicyConfig("models.>", max_bytes=1 << 20))
        for number in range(3):
            await bus.publish("models.demo", MODEL, codec="nf4", key=f"model-{number}")
        async with bus.subscribe("models.>", consumer="reader", max_deliver=2) as deliveries:
            for way in ("nak", "term"):
                delivery = await deliveries.receive(5)
                assert delivery is not None
                await (delivery.nak() if way == "nak" else delivery.term("malformed"))
        said = await printed("--url", url)
        assert said == re.sub(r"\x1b", "", said), "there is no terminal to colour"
    assert row(said, "Tensorbus", url) and row(said, "disk", "free of")
    assert row(said, "4 messages") and row(said, "redelivered 1", "dead 1")
    assert row(said, "CONSUMERS", "lag", "unsettled", "redelivered", "dead")
    assert row(said, "reader", " 2 ", " 1 ", "models.>")
    assert row(said, "models.demo", " 3 ") and row(said, "dead.reader", " 1 ")
    assert row(said, "nf4", " 3 ", "48.00 KiB", " %")
    assert row(said, "few", "of 1.00 MiB", "policy", "models.>")
    assert re.search(r"published \d", said)


async def test_a_snapshot_for_programs(tmp_path: Path) -> None:
    """--once --json is what the broker answers; --json alone goes on, a line for each change."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        status = json.loads(await printed("--once", "--json", "--url", url))
        assert status.keys() == (await bus.status()).keys()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tensorbus", "top", "--json", "--url", url),
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                assert json.loads(await process.stdout.readline())["totals"]["messages"] == 0
                await bus.publish("models.demo", MODEL)
                while json.loads(await process.stdout.readline())["totals"]["messages"] == 0:
                    pass
        finally:
            process.terminate()
            await process.wait()


async def test_a_federation(tmp_path: Path) -> None:
    """The job, its round, who is in and with which loss, and who is not; then the loss by round."""
    async with running_broker(tmp_path / "data") as url, Client(url) as bus:
        spec = JobSpec(job="sft", sites=2, rounds=2, quorum=2, deadline=600.0)
        await bus.publish("fl.sft.seed", MODEL)
        aggregator = Aggregator(bus, spec, init=None, listener=lambda _: None, state=tmp_path / "state")
        working = asyncio.create_task(aggregator.run())
        ready, done = asyncio.Event(), asyncio.Event()

        async def site(name: str) -> None:
            async for task in Participant(bus, job="sft", site=name).rounds():
                model = await task.load()
                if name == "b":
                    await ready.wait()
                await task.submit(model, num_examples=32, metrics={"loss": 2.5 / task.round})
                if task.round == 2:
                    await done.wait()

        sites = [asyncio.create_task(site(name)) for name in "ab"]
        async with top("--url", url, columns=160) as terminal:
            await terminal.until(lambda text: row(text, "sft", "1 of 2", "open", "1 of 2"))
            text = await terminal.until(lambda text: row(text, "a ", "sft", "in", "loss 2.5", "32"))
            assert row(text, "JOBS", "loss by round") and re.search(r"in (9|10) min", text)
            ready.set()
            await terminal.until(lambda text: row(text, "sft", "2 of 2", "2.5"))
            done.set()
            await asyncio.gather(working, *sites)
            await terminal.until(lambda text: row(text, "sft", "done", "2.5 → 1.25"))
            terminal.type(b"q")
            assert await terminal.ended() == 0


async def test_it_is_live_and_quits(tmp_path: Path) -> None:
    """What is published appears; the picture follows the window's size, is never wiped, and leaves the
    terminal as it was, on q as on Ctrl-C."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        async with top("--url", url, lines=24, columns=100) as terminal:
            await terminal.until(lambda text: "Nothing is stored" in text)
            assert not terminal.echoes
            begun = len(terminal.raw)
            await bus.publish("models.one", MODEL)
            await terminal.until(lambda text: row(text, "models.one", " 1 "))
            terminal.resize(30, 70)
            await bus.publish("models.two", MODEL)
            await terminal.until(lambda text: row(text, "models.two", " 1 "))
            await terminal.until(lambda _: re.fullmatch(r".* \d\d:\d\d:\d\d", terminal.lines[0]))
            assert len(terminal.lines[0]) == 70
            assert b"\x1b[2J" not in terminal.raw[begun:] and b"\x1b[J" not in terminal.raw[begun:]
            terminal.type(b"q")
            assert await terminal.ended() == 0
            assert terminal.raw.endswith(b"\x1b[?25h") or LEFT in terminal.raw
            assert terminal.echoes
        async with top("--url", url) as terminal:
            await terminal.until(lambda text: "models.one" in text)
            terminal.type(b"\x03")
            assert await terminal.ended() == 0
            assert terminal.echoes and b"Traceback" not in terminal.raw


async def test_a_small_window_shows_what_matters(tmp_path: Path) -> None:
    """With more topics and consumers than lines the head stays, and each list says how many it leaves out."""
    async with running_broker(tmp_path) as url, Client(url) as bus:
        names = [f"crowd.topic-{number}" for number in range(60)]
        await asyncio.gather(*(bus.publish(name, b"x") for name in names))
        async with top("--url", url, lines=16, columns=80) as terminal:
            text = await terminal.until(lambda text: "more" in text)
            assert terminal.lines[0].startswith("Tensorbus")
            found = re.search(r"… and (\d+) more", text)
            assert found is not None and int(found[1]) + text.count("crowd.topic-") == 60
        said = await printed("--url", url, "--search", "TOPIC-7")
        assert "crowd.topic-7 " in said and "crowd.topic-8 " not in said


async def test_a_broker_that_restarts(tmp_path: Path) -> None:
    """While the broker is away it says so, with the last picture; then it goes on by itself."""

    @asynccontextmanager
    async def broker(port: int) -> AsyncGenerator[Server]:
        settings = ServerSettings(host="127.0.0.1", port=port)
        async with (
            Broker(FileStore(tmp_path)) as broker,
            Server(broker, settings, TokenFile(tmp_path)) as server,
        ):
            yield server

    async with broker(0) as server, Client(server.url) as bus:
        url = server.url
        await bus.publish("models.kept", MODEL)
        terminal_there = top("--url", url)
        terminal = await terminal_there.__aenter__()
        await terminal.until(lambda text: "models.kept" in text)
    try:
        await terminal.until(
            lambda text: row(text, "connection lost", "trying again") and "models.kept" in text
        )
        async with broker(int(url.rsplit(":", 1)[1])):
            await terminal.until(lambda text: "connection lost" not in text and "models.kept" in text)
            terminal.type(b"q")
            assert await terminal.ended() == 0
    finally:
        await terminal_there.__aexit__(None, None, None)


async def test_tokens_and_tls(tmp_path: Path) -> None:
    """It shows what its token may read, over HTTPS; without one it says so, and so it does when that token is
    revoked, which ends it."""
    authority = trustme.CA()
    ca, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(own))
    tokens = TokenFile(tmp_path / "data")
    root = str(tokens.create(TokenPlan("root", Rights((), (), (">",))))[1])
    made, reader = tokens.create(TokenPlan("watcher", Rights((), ("models.>",), ())))
    settings = ServerSettings(tls=TlsFiles(own))
    async with (
        running_broker(tmp_path / "data", settings=settings) as url,
        Client(url, root, tls=TlsSettings(ca)) as bus,
    ):
        await bus.publish("models.mine", MODEL)
        await bus.publish("secret.theirs", MODEL)
        assert "tensorbus: " in await printed("--url", url, "--tls-ca", str(ca), code=1)
        there = {"TENSORBUS_TOKEN": str(reader), "TENSORBUS_TLS_CA": str(ca), "TENSORBUS_URL": url}
        async with top(more=there) as terminal:
            text = await terminal.until(lambda text: "models.mine" in text)
            assert "as watcher" in text and "secret" not in text
            await bus.revoke_token(made.info.id)
            assert await terminal.ended() == 1
            assert LEFT in terminal.raw and b"Traceback" not in terminal.raw


async def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    """Nothing is drawn where nobody ever answered: exit code 3 and a sentence."""
    said = await printed("--url", "http://127.0.0.1:9", code=3)
    assert said.count("tensorbus: ") == 1 and "127.0.0.1:9" in said
