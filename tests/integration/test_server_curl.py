"""The API with nothing but curl: what the user guide shows has to work."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tensorbus.bus.testing import running_broker
from tensorbus.streaming.frames import FrameParser, Kind

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a broker of its own."""
    async with running_broker(tmp_path / "data") as address:
        yield address


async def curl(*arguments: str) -> bytes:
    """What curl prints; an HTTP error fails the test."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--fail", *arguments, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


async def curl_json(*arguments: str) -> Any:
    """The JSON that curl prints."""
    return json.loads(await curl(*arguments))


async def test_publish_list_inspect_fetch(url: str, tmp_path: Path) -> None:
    """A file goes in, is listed and inspected, and comes out: whole, in part, and one item of it."""
    source = tmp_path / "notes.txt"
    source.write_bytes(b"federated " * 200_000)
    receipt = await curl_json(
        *("--header", "Content-Type: text/plain", "--header", "Tensorbus-Header-author: me"),
        *("--data-binary", f"@{source}", f"{url}/v1/topics/demo.notes/messages"),
    )
    listed = await curl_json(f"{url}/v1/messages?topic=demo.*&limit=1&order=desc")
    assert [message["id"] for message in listed["messages"]] == [receipt["id"]]
    info = await curl_json(f"{url}/v1/messages/{receipt['id']}")
    assert info["headers"] == {"author": "me"}
    assert info["manifest"][0]["n"] == "body"

    whole = tmp_path / "whole"
    await curl("--output", str(whole), f"{url}/v1/messages/{receipt['id']}/frames")
    assert whole.stat().st_size == receipt["bytes"]
    parser = FrameParser()
    payloads = [bytes(f.payload) for f in parser.feed(whole.read_bytes()) if f.kind == Kind.SLICE]
    assert b"".join(payloads) == source.read_bytes()

    # As after a cut: the first half, then `--continue-at -` for the rest.
    part = tmp_path / "part"
    part.write_bytes(whole.read_bytes()[:1_000_000])
    await curl("--continue-at", "-", "--output", str(part), f"{url}/v1/messages/{receipt['id']}/frames")
    assert part.read_bytes() == whole.read_bytes()

    item = await curl(f"{url}/v1/messages/{receipt['id']}/items/body")
    assert item and item in whole.read_bytes()


async def test_a_stored_body_is_published_again_as_it_is(url: str, tmp_path: Path) -> None:
    """Frames that came from one broker can be sent to a topic as they are, with a key, from a file."""
    receipt = await curl_json("--data", "hello", f"{url}/v1/topics/demo.first/messages")
    frames = tmp_path / "hello.frames"
    await curl("--output", str(frames), f"{url}/v1/messages/{receipt['id']}/frames")
    send = (
        *("--request", "POST", "--upload-file", str(frames), "--header", "Idempotency-Key: copy"),
        *(
            "--header",
            "Content-Type: application/vnd.tensorbus.frames",
            f"{url}/v1/topics/demo.second/messages",
        ),
    )
    copy = await curl_json(*send)
    assert copy["digest"] == receipt["digest"]
    assert copy["id"] != receipt["id"]
    assert await curl_json(*send) == {**copy, "duplicate": True}


async def test_a_large_duplicate_is_answered_before_it_is_sent(url: str, tmp_path: Path) -> None:
    """curl asks with Expect: 100-continue before it sends a large file, and then need not send it at all."""
    source = tmp_path / "large"
    source.write_bytes(b"x" * (4 << 20))
    send = (
        *("--header", "Content-Type: text/plain", "--header", "Idempotency-Key: k"),
        *("--header", "Expect: 100-continue", "--expect100-timeout", "30"),
        *("--upload-file", str(source), "--request", "POST", f"{url}/v1/topics/demo/messages"),
    )
    first = await curl_json(*send)
    assert await curl_json(*send) == {**first, "duplicate": True}


async def test_a_worker_in_shell(url: str) -> None:
    """Create a consumer, take a delivery, acknowledge it: a loop that a shell script can run."""
    receipt = await curl_json("--data", "hello", f"{url}/v1/topics/demo.work/messages")
    consumer = f"{url}/v1/consumers/shell"
    await curl("--request", "PUT", "--json", '{"filter": "demo.>"}', consumer)
    taken = await curl_json("--request", "POST", "--json", '{"wait": 5}', f"{consumer}/deliveries")
    [delivery] = taken["deliveries"]
    assert delivery["message"]["id"] == receipt["id"]
    await curl("--request", "POST", f"{consumer}/deliveries/{delivery['token']}/ack")
    assert (await curl_json(consumer))["ack_pending"] == 0
