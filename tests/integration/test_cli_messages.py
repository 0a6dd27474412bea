"""publish, fetch, subscribe, topics, inspect: as processes, against a real broker."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TENSORBUS_")}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and its two outputs."""

    code: int
    out: str
    err: str

    def lines(self) -> list[dict[str, object]]:
        """Standard output, one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Coroutine[None, None, Outcome]]


async def _run(*arguments: str | Path, environment: Mapping[str, str]) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tensorbus",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, **environment},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def url(tmp_path: Path) -> AsyncGenerator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path / "data") as running:
        yield running


@pytest.fixture
def run(url: str) -> Run:
    """Runs `tensorbus` with the broker's address in the environment."""

    async def run(*arguments: str | Path) -> Outcome:
        return await _run(*arguments, environment={"TENSORBUS_URL": url})

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small safetensors file."""
    path = tmp_path / "model.safetensors"
    random = np.random.default_rng(0)
    save_file(
        {
            "layer.weight": random.standard_normal((300, 1000)).astype(np.float32),
            "layer.norm": np.ones(64, np.float32),
        },
        path,
    )
    return path


async def test_a_model_goes_through_the_command_line(run: Run, model: Path, tmp_path: Path) -> None:
    """Published with a codec and a kept tensor, the model is inspected, listed and fetched again."""
    published = await run(
        "publish", "models.demo", model, "--codec", "nf4", "--keep", "*norm*", "--header", "by=me"
    )
    assert published.code == 0, published.err
    assert "on the wire" in published.out
    message_id = published.out.split()[0]

    inspected = await run("inspect", message_id)
    assert inspected.code == 0
    for word in (
        message_id,
        "models.demo",
        "layer.weight",
        "nf4",
        "[300, 1000]",
        "float32",
        "header by",
        "me",
    ):
        assert word in inspected.out

    listed = await run("topics")
    assert "models.demo" in listed.out

    out = tmp_path / "out.safetensors"
    fetched = await run("fetch", message_id, "-o", out)
    assert fetched.code == 0, fetched.err
    got, sent = load_file(out), load_file(model)
    assert np.array_equal(got["layer.norm"], sent["layer.norm"])
    assert 0 < np.abs(got["layer.weight"] - sent["layer.weight"]).mean() < 0.1


async def test_programs_read_json(run: Run, model: Path, tmp_path: Path) -> None:
    """With --json every command prints objects of documented fields, and nothing else, on stdout."""
    (receipt,) = (await run("publish", "models.demo", model, "--key", "k1", "--json")).lines()
    assert receipt["key"] == "k1"
    assert receipt["bytes_original"] == 4 * (300_000 + 64)
    (again,) = (await run("publish", "models.demo", model, "--key", "k1", "--json")).lines()
    assert (again["id"], again["duplicate"], receipt["duplicate"]) == (receipt["id"], True, False)

    (topic,) = (await run("topics", "--json")).lines()
    assert (topic["topic"], topic["messages"]) == ("models.demo", 1)

    (found,) = (await run("inspect", str(receipt["id"]), "--json")).lines()
    manifest = cast("list[dict[str, object]]", found["manifest"])
    assert {entry["name"]: entry["shape"] for entry in manifest} == {
        "layer.weight": [300, 1000],
        "layer.norm": [64],
    }
    assert sum(cast(int, entry["wire_bytes"]) for entry in manifest) == receipt["bytes_original"]

    out = tmp_path / "norm.safetensors"
    (written,) = (await run("fetch", str(receipt["id"]), "-o", out, "--item", "layer.norm", "--json")).lines()
    assert written == {
        "id": receipt["id"],
        "path": str(out),
        "bytes": out.stat().st_size,
        "item": "layer.norm",
    }
    assert list(load_file(out)) == ["layer.norm"]


async def test_other_files_are_bytes(run: Run, tmp_path: Path) -> None:
    """A file of any other kind is sent as it is and comes back as it was."""
    note, out = tmp_path / "note.txt", tmp_path / "out.txt"
    note.write_bytes(np.random.default_rng(0).bytes(2_500_000))
    (receipt,) = (await run("publish", "notes.demo", note, "--json")).lines()
    assert (await run("fetch", str(receipt["id"]), "-o", out)).code == 0
    assert out.read_bytes() == note.read_bytes()


async def test_subscribe_prints_and_saves(run: Run, url: str, model: Path, tmp_path: Path) -> None:
    """Messages of matching topics are printed, written to files and acknowledged, then no more come."""
    async with Client(url) as bus:
        first = await bus.publish("models.a", model, headers={"round": 1})
        second = await bus.publish("notes.a", b"text")
        await bus.publish("models.other.deep", b"")
    saved = await run(
        "subscribe",
        "*.a",
        "--consumer",
        "archive",
        "--count",
        "2",
        "--json",
        "--save-dir",
        tmp_path / "archive",
    )
    assert saved.code == 0, saved.err
    assert [line["id"] for line in saved.lines()] == [first.id, second.id]
    paths = [Path(str(line["path"])) for line in saved.lines()]
    assert set(load_file(paths[0])) == {"layer.weight", "layer.norm"}
    assert paths[1].read_bytes() == b"text"
    async with Client(url) as bus:
        (consumer,) = await bus.consumers()
        assert (consumer.name, consumer.ack_pending, consumer.backlog) == ("archive", 0, 0)
    printed = await run("subscribe", "models.a", "--count", "1")
    assert first.id in printed.out
    assert '{"round": 1}' in printed.out


async def test_subscribe_follows_what_is_being_published(run: Run, url: str) -> None:
    """With --follow a message is taken while it is open, and printed once it is whole."""
    half, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_progress: object) -> None:
        half.set()
        await go_on.wait()

    async with Client(url) as bus:
        publishing = asyncio.create_task(
            bus.publish("models.live", np.random.default_rng(0).bytes(3_000_000), progress=wait)
        )
        await half.wait()
        following = asyncio.create_task(run("subscribe", "models.live", "--follow", "--count", "1", "--json"))
        while not any(consumer.ack_pending for consumer in await bus.consumers()):
            await asyncio.sleep(0.01)
        go_on.set()
        receipt = await publishing
        (line,) = (await following).lines()
        assert (line["id"], line["state"], line["bytes"]) == (receipt.id, "sealed", receipt.bytes_on_wire)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fetch", "0" * 32, "-o", "out"], 4, "0" * 32),
        (["inspect", "0" * 32], 4, "0" * 32),
        (["inspect", "nonsense"], 1, "nonsense"),
        (["publish", "a..b", "{model}"], 1, "a..b"),
        (["publish", "models.demo", "{model}", "--codec", "nf5"], 1, "nf5"),
        (["publish", "models.demo", "gone.safetensors"], 2, "gone.safetensors"),
        (["publish", "models.demo", "{model}", "--header", "novalue"], 2, "novalue"),
        (["publish", "models.demo"], 2, "FILE"),
        (["subscribe", ">.x"], 1, ">.x"),
        (["nonsense"], 2, "nonsense"),
        (["topics", "--url", "ftp://x"], 1, "http://"),
    ],
)
async def test_exit_codes_mean_something(
    run: Run, model: Path, arguments: list[str], code: int, said: str
) -> None:
    """1 refused, 2 wrong usage, 4 not found: each says what was wrong, and shows no traceback."""
    outcome = await run(*(argument.format(model=model) for argument in arguments))
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


async def test_a_broker_that_is_away_has_a_code_of_its_own() -> None:
    """Exit code 3 when nobody answers, after a few seconds and with the address that was tried."""
    outcome = await _run("topics", "--url", "http://127.0.0.1:1", environment={})
    assert outcome.code == 3
    assert "http://127.0.0.1:1" in outcome.err
    assert "Traceback" not in outcome.err


async def test_a_token_is_sent(tmp_path: Path) -> None:
    """--token, --token-file and their variables reach the broker as a bearer token; not two at once."""
    seen: list[str] = []
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "two").write_text("one two\n")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.extend(line for line in head.decode().splitlines() if line.startswith("Authorization"))
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for variable, value in (("TENSORBUS_TOKEN", "secret"), ("TENSORBUS_TOKEN_FILE", f"{tmp_path}/token")):
            seen.clear()
            outcome = await _run("topics", environment={"TENSORBUS_URL": url, variable: value})
            assert (outcome.code, seen) == (1, ["Authorization: Bearer secret"])
            assert "secret" not in outcome.err
    both = await _run("topics", "--token", "a", "--token-file", str(tmp_path / "token"), environment={})
    assert (both.code, "not both" in both.err) == (2, True)
    for name, code in (("two", 1), ("none", 2)):
        wrong = await _run("topics", "--token-file", str(tmp_path / name), environment={})
        assert (wrong.code, str(tmp_path / name) in wrong.err) == (code, True)


async def test_progress_is_shown_to_people_only(url: str, tmp_path: Path) -> None:
    """A transfer of more than a second draws a bar on a terminal; into a pipe it says nothing."""
    slow = tmp_path / "slow.bin"
    slow.write_bytes(bytes(8 << 20))
    script = (
        "import time, tensorbus.cli.transfer_bar as t; from tensorbus.bus.client.progress import Progress\n"
        "with t.TransferBar('publishing slow.bin') as bar:\n"
        "    bar(Progress(1, 100, 1, 100, 'w')); time.sleep(1.1); bar(Progress(50, 100, 50, 100, 'w'))\n"
    )
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=follower, env={**ENVIRONMENT, "TERM": "xterm"}
    )
    os.close(follower)
    shown = await asyncio.to_thread(_read_all, leader)
    assert await process.wait() == 0
    assert "publishing slow.bin" in shown
    assert "50/100" in shown
    quiet = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE, env=ENVIRONMENT
    )
    _, err = await quiet.communicate()
    assert err == b""


def _read_all(descriptor: int) -> str:
    """What a process writes to its terminal until it ends."""
    found = b""
    try:
        while piece := os.read(descriptor, 65536):
            found += piece
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    os.close(descriptor)
    return found.decode()
