"""Clients of the tus standard that know nothing of Tensorbus publish messages: tuspy and tus-js-client.

Each is interrupted and goes on, with checksums, and over a restart of the broker in its midst.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

from tensorbus.bus.broker import Broker
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.streaming.raw import RawEncoder

SIZE = 5_000_000
CHUNK = 700_001
SCRIPT = Path(__file__).with_name("tus_publisher.mjs")
PACKAGE = "tus-js-client@4.3.1"


def message(size: int = SIZE) -> bytes:
    """The frames of a message."""
    encoder = RawEncoder({"by": "a stranger"}, "application/octet-stream", size)
    parts = [encoder.open()]
    data = os.urandom(size)
    for start in range(0, size, 1_000_000):
        for head, payload in encoder.slices(data[start : start + 1_000_000]):
            parts.append(head + bytes(payload))
    return b"".join([*parts, encoder.close()])


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """A broker that is always at the same address, whether or not it runs."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.uploads = f"{self.url}/v1/topics/from.strangers/uploads"

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        settings = ServerSettings(port=self.port, shutdown_timeout=0.1)
        async with Broker(FileStore(self.data)) as broker, Server(broker, settings):
            yield

    async def stored(self) -> list[bytes]:
        """All messages."""
        async with aiohttp.ClientSession(self.url) as http:
            async with http.get("/v1/messages") as answer:
                listed = (await answer.json())["messages"]
            found: list[bytes] = []
            for one in listed:
                async with http.get(f"/v1/messages/{one['id']}/frames") as answer:
                    found.append(await answer.read())
            return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Of a broker of its own."""
    return Place(tmp_path / "data")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of frames."""
    path = tmp_path / "message.frames"
    path.write_bytes(message())
    return path


# --- tuspy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [False, True])
async def test_tuspy_publishes_and_goes_on(place: Place, file: Path, tmp_path: Path, checksum: bool) -> None:
    """It is stopped half-way; another object, which finds the upload in its storage, sends the rest."""

    def upload(stop_at: int | None = None) -> None:
        storage = FileStorage(str(tmp_path / "urls.json"))
        try:
            TusClient(place.uploads).uploader(  # pyright: ignore[reportUnknownMemberType]
                str(file), chunk_size=CHUNK, store_url=True, url_storage=storage, upload_checksum=checksum
            ).upload(stop_at=stop_at)
        finally:
            storage.close()

    async with place.running():
        await asyncio.to_thread(upload, SIZE // 2)
        assert await place.stored() == []
        await asyncio.to_thread(upload)
        assert await place.stored() == [file.read_bytes()]


async def test_tuspy_outlives_a_restart_of_the_broker(place: Place, file: Path) -> None:
    """Its retry asks for the offset, which may be a frame less than it had sent, and goes on there."""
    loop = asyncio.get_running_loop()
    uploader_at = asyncio.Queue[int]()

    def upload() -> None:
        client = TusClient(place.uploads)
        uploader = client.uploader(  # pyright: ignore[reportUnknownMemberType]
            str(file), chunk_size=CHUNK, retries=100, retry_delay=0.1
        )
        while uploader.offset < file.stat().st_size:
            uploader.upload_chunk()
            loop.call_soon_threadsafe(uploader_at.put_nowait, uploader.offset)

    async with place.running():
        uploading = asyncio.create_task(asyncio.to_thread(upload))
        while await uploader_at.get() < SIZE // 3:
            pass
    async with place.running():
        await uploading
        assert await place.stored() == [file.read_bytes()]


# --- tus-js-client -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a node that has tus-js-client, which npm installs once."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        if os.environ.get("CI"):
            pytest.fail("CI tests tus-js-client, and needs node and npm for it: apt-get install nodejs npm")
        pytest.skip("node and npm are not installed")
    cache = os.environ.get("TENSORBUS_TEST_CACHE")
    folder = Path(cache) if cache else tmp_path_factory.mktemp("npm")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "tus-js-client").is_dir():
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--no-save", PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            if os.environ.get("CI"):
                pytest.fail(f"npm could not install {PACKAGE}: {done.stderr}")
            pytest.skip(f"npm could not install {PACKAGE}: {done.stderr[-300:]}")
    return {**os.environ, "TUS_JS_CLIENT": str(folder / "package.json")}


async def run(javascript: dict[str, str], place: Place, file: Path, *flags: str) -> dict[str, object]:
    """One run of the script; what it says in the end."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(SCRIPT),
        place.uploads,
        str(file),
        str(CHUNK),
        str(file.with_name("urls.json")),
        *flags,
        env=javascript,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, problems = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (out, problems)
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("flags", [[], ["--checksum"]])
async def test_tus_js_client_publishes_and_goes_on(
    javascript: dict[str, str], place: Place, file: Path, flags: list[str]
) -> None:
    """A process is ended in the midst of its upload; the next one finds it and sends only the rest."""
    size = file.stat().st_size
    async with place.running():
        first = await run(javascript, place, file, *flags, "--stop-at", str(SIZE // 2))
        assert await place.stored() == []
        second = await run(javascript, place, file, *flags)
        assert second["url"] == first["url"]
        assert (second["POST"], second["HEAD"]) == (0, 1)
        assert int(str(first["sent"])) + int(str(second["sent"])) == size
        assert second["message"] == str(second["url"]).rsplit("/", 1)[-1]
        assert await place.stored() == [file.read_bytes()]


@pytest.mark.parametrize("flags", [["--deferred"], ["--deferred", "--checksum"]])
async def test_tus_js_client_publishes_a_stream(
    javascript: dict[str, str], place: Place, file: Path, flags: list[str]
) -> None:
    """Its length is only known at its end."""
    async with place.running():
        done = await run(javascript, place, file, *flags)
        assert (done["POST"], done["sent"]) == (1, file.stat().st_size)
        assert await place.stored() == [file.read_bytes()]


async def test_tus_js_client_goes_on_over_a_restart(
    javascript: dict[str, str], place: Place, file: Path
) -> None:
    """It begins with one broker and ends with the next; and once more while the broker is away and back."""
    async with place.running():
        await run(javascript, place, file, "--stop-at", str(SIZE // 2))
    going_on = asyncio.create_task(run(javascript, place, file))
    await asyncio.sleep(0.3)
    async with place.running():
        done = await going_on
        assert done["POST"] == 0
        assert await place.stored() == [file.read_bytes()]
