"""Bad input, one by one, against a real broker: each gets a clear answer, costs no memory, loses nothing."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from tensorbus.bus.client import Client
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import NonFiniteValues, UnknownCodec, UnsupportedDtype
from tensorbus.streaming import checksum
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.frames import PRELUDE, Kind, encode_frame
from tensorbus.streaming.packing import pack, pack_array
from tensorbus.streaming.sources import open_source

FRAMES = "application/vnd.tensorbus.frames"
MAX_MESSAGE = 8 << 20
GROWTH = 24 << 20
"""Bytes that the broker may grow by over all cases together: what a handful of ordinary requests takes."""

Headers = dict[str, str]


@dataclass(frozen=True)
class Running:
    """A broker process."""

    process: subprocess.Popen[str]
    url: str
    data: Path

    def memory(self) -> int:
        """VmHWM in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None
    ) -> tuple[int, dict[str, object]]:
        """One request; its status and JSON answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            return response.status, json.loads(text) if is_json else {}
        finally:
            connection.close()

    def publish(
        self, topic: str, body: bytes, headers: Headers | None = None
    ) -> tuple[int, dict[str, object]]:
        """Publish frames as they are."""
        path = f"/v1/topics/{quote(topic, safe='')}/messages"
        return self.call("POST", path, body, {"Content-Type": FRAMES, **(headers or {})})


def start(data: Path, *options: str) -> subprocess.Popen[str]:
    """A broker process that may or may not come up."""
    command = [sys.executable, "-m", "tensorbus", "serve", "--data", str(data), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def broker(data: Path, *options: str) -> Generator[Running]:
    """A broker on a free port, ended by its id."""
    process = start(data, "--port", "0", *options)
    assert process.stdout is not None
    try:
        yield Running(process, json.loads(process.stdout.readline())["url"], data)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The broker that takes all the blows, with small limits and a short idle time-out."""
    data = tmp_path_factory.mktemp("broker")
    with broker(data, "--max-message", str(MAX_MESSAGE >> 20), "--idle-timeout", "1") as found:
        yield found


def frames_of(container: object, codec: str = "none") -> list[bytes]:
    """A valid message, frame by frame."""
    encoder = ContainerEncoder(open_source(container), Pipeline.parse(codec), {})
    return [
        frame.head + bytes(frame.payload) for frame in encoder.frames(lambda: memoryview(bytearray(1 << 20)))
    ]


def model() -> list[bytes]:
    """open, manifest, three slices of three tensors, close."""
    return frames_of({name: np.arange(1000, dtype=np.float32) for name in ("a", "b", "c")})


def recast(frame: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A frame with a changed prelude; its checksum is made right again."""
    whole = bytearray(frame)
    change(whole)
    crc = checksum.extend(checksum.extend(0, bytes(whole[:16])), bytes(whole[20:]))
    whole[16:20] = struct.pack("<I", crc)
    return bytes(whole)


def set_byte(position: int, value: int) -> Callable[[bytearray], None]:
    """A change of one byte."""

    def change(whole: bytearray) -> None:
        whole[position] = value

    return change


def with_manifest(*entries: dict[str, object]) -> bytes:
    """An opened message that declares ``entries`` and stops."""
    opened: dict[str, object] = {
        "headers": {},
        "container": "numpy",
        "pipeline": {},
        "metadata": {},
        "items": len(entries),
    }
    opened |= {"original_bytes": None, "wire_bytes": None}
    payload = pack_array([pack(entry) for entry in entries])
    return encode_frame(Kind.OPEN, opened) + encode_frame(Kind.MANIFEST, {"first": 0}, payload) + payload


def entry(name: str = "w", dtype: str = "float32", shape: tuple[int, ...] = (4,)) -> dict[str, object]:
    """One item of a manifest."""
    return {"n": name, "d": dtype, "s": list(shape), "q": {"name": "none"}}


def flipped(frame: bytes) -> bytes:
    """A frame with one bit of its payload flipped."""
    return frame[:-3] + bytes([frame[-3] ^ 0x10]) + frame[-2:]


def long_claim(frame: bytes) -> bytes:
    """The beginning of a frame that claims a payload of 4 GiB."""
    return PRELUDE.pack(b"TNSB", 1, Kind.SLICE, 0, 40, 0xFFFFFFFF, 0) + frame


BODIES: list[tuple[str, Callable[[list[bytes]], bytes], int, str]] = [
    ("truncated in a frame", lambda m: b"".join(m)[:-7], 422, "truncated-frames"),
    ("truncated between frames", lambda m: b"".join(m[:-1]), 422, "truncated-frames"),
    ("empty", lambda m: b"", 422, "truncated-frames"),
    ("reordered", lambda m: b"".join([*m[:2], m[3], m[2], *m[4:]]), 422, "frame-sequence"),
    ("duplicated", lambda m: b"".join([*m[:3], m[2], *m[3:]]), 422, "frame-sequence"),
    ("dropped", lambda m: b"".join([*m[:3], *m[4:]]), 422, "frame-sequence"),
    ("a bit flipped", lambda m: b"".join([*m[:2], flipped(m[2]), *m[3:]]), 422, "checksum-mismatch"),
    ("a frame of 4 GiB", lambda m: b"".join(m[:2]) + long_claim(m[2]), 413, "limit-exceeded"),
    ("no frames at all", lambda m: b"GET / HTTP/1.1 and so on, long enough", 422, "frame"),
    ("an unknown version", lambda m: recast(m[0], set_byte(4, 9)), 422, "unsupported-version"),
    ("an unknown kind", lambda m: m[0] + recast(m[1], set_byte(5, 77)), 422, "unsupported-version"),
    ("more after the close", lambda m: b"".join([*m, m[-1]]), 422, "frame-sequence"),
    (
        "a manifest that disagrees",
        lambda m: with_manifest(entry("a", shape=(7,))) + m[2],
        422,
        "frame-sequence",
    ),
    ("2^63 elements", lambda m: with_manifest(entry(shape=(1 << 62, 2))), 413, "limit-exceeded"),
    (
        "a huge product of extents",
        lambda m: with_manifest(entry(shape=(1 << 40, 1 << 40))),
        413,
        "limit-exceeded",
    ),
    ("an item name with NUL", lambda m: with_manifest(entry("a\0b")), 400, "invalid-name"),
    ("an item name ..", lambda m: with_manifest(entry("..")), 400, "invalid-name"),
    ("an item name of 10,000 characters", lambda m: with_manifest(entry("x" * 10_000)), 400, "invalid-name"),
    ("the same name twice", lambda m: with_manifest(entry("a"), entry("a")), 400, "invalid-name"),
]


@pytest.fixture(scope="module", autouse=True)
def nothing_lost(running: Running) -> Iterator[None]:
    """A message that was acknowledged before all cases is there after them, bit for bit; memory is flat."""
    body = b"".join(model())
    status, receipt = running.publish("kept.model", body)
    assert status == 201
    before = running.memory()
    yield
    assert running.memory() - before < GROWTH
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=30)
    connection.request("GET", f"/v1/messages/{receipt['id']}/frames")
    assert hashlib.sha256(connection.getresponse().read()).digest() == hashlib.sha256(body).digest()
    connection.close()
    _, listed = running.call("GET", "/v1/messages?topic=bad.%3E")
    assert listed["messages"] == []
    # What is whole is small, and lies with the rows; of the others nothing is left.
    assert list((running.data / "frames").iterdir()) == []


@pytest.mark.parametrize(("what", "make", "status", "slug"), BODIES, ids=[case[0] for case in BODIES])
def test_a_bad_body_is_refused_by_name(
    running: Running, what: str, make: Callable[[list[bytes]], bytes], status: int, slug: str
) -> None:
    """A body that is not a whole, valid message is refused with what is wrong and where, and not stored."""
    answered, problem = running.publish("bad.body", make(model()))
    assert (answered, problem["type"]) == (status, f"urn:tensorbus:problem:{slug}"), problem
    assert problem["status"] == status
    assert len(str(problem["detail"])) > 10


@pytest.mark.parametrize("topic", ["a..b", "..", "a.\0", "x" * 10_000, "a/b", "", " ", "a.*", "a.>", "ä"])
def test_a_bad_topic_is_refused(running: Running, topic: str) -> None:
    """A topic is tokens of letters, digits, - and _; nothing else comes near the store."""
    status, problem = running.publish(topic, b"".join(model()))
    assert status in ((414,) if len(topic) > 8000 else (400, 404))
    assert str(problem["type"]).startswith("urn:tensorbus:problem:")


def test_a_body_larger_than_the_limit_is_refused_at_once(running: Running) -> None:
    """The announced length alone is enough; so are lengths that no body can have."""
    for length in (MAX_MESSAGE + 1, 1 << 63, 1 << 80):
        with socket.create_connection(
            (urlsplit(running.url).hostname, urlsplit(running.url).port), 30
        ) as peer:
            head = f"POST /v1/topics/bad.large/messages HTTP/1.1\r\nHost: x\r\nContent-Type: {FRAMES}\r\n"
            peer.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            answer = peer.recv(65536)
        # What fits no 64 bits is refused by the HTTP parser, before there is a request.
        assert answer.split()[1] == (b"413" if length <= 1 << 63 else b"400"), answer


def test_a_body_that_outgrows_the_limit_is_refused_on_the_way(running: Running) -> None:
    """Without an announced length, the limit is held against what has come."""
    frames = frames_of({"w": np.zeros(3 << 20, np.float32)})
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=30)
    try:
        connection.request(
            "POST",
            "/v1/topics/bad.large/messages",
            iter(frames),
            {"Content-Type": FRAMES},
            encode_chunked=True,
        )
    except (BrokenPipeError, ConnectionResetError):
        pass  # the broker need not listen to the end
    else:
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def open_upload(running: Running, frames: list[bytes], announced: int) -> socket.socket:
    """A publisher that has sent ``frames`` of the ``announced`` bytes."""
    peer = socket.create_connection((urlsplit(running.url).hostname, urlsplit(running.url).port), 30)
    head = f"POST /v1/topics/bad.partial/messages HTTP/1.1\r\nHost: x\r\nContent-Type: {FRAMES}\r\n"
    peer.sendall(f"{head}Content-Length: {announced}\r\n\r\n".encode() + b"".join(frames))
    return peer


def test_a_publisher_that_stops_halfway_leaves_nothing(running: Running) -> None:
    """Neither a message nor a file remains of an upload whose connection is cut (checked by nothing_lost)."""
    frames = model()
    open_upload(running, frames[:3], len(b"".join(frames))).close()


def test_a_silent_publisher_is_told_and_dropped(running: Running) -> None:
    """No byte for the idle time-out: 408, as a problem document."""
    frames = model()
    with open_upload(running, frames[:3], len(b"".join(frames))) as peer:
        answer = peer.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"transfer-stalled" in answer


def test_an_ack_counts_once_and_for_its_consumer(running: Running) -> None:
    """A second ack is a conflict; the token of another consumer is not found."""
    for name in ("one", "two"):
        config = json.dumps({"filter": "kept.>", "start": "all"}).encode()
        assert running.call("PUT", f"/v1/consumers/{name}", config)[0] == 201
    status, pulled = running.call("POST", "/v1/consumers/one/deliveries", b'{"max": 1, "wait": 5}')
    assert status == 200
    deliveries = pulled["deliveries"]
    assert isinstance(deliveries, list)
    token: str = deliveries[0]["token"]  # pyright: ignore[reportUnknownVariableType]
    status, problem = running.call("POST", f"/v1/consumers/two/deliveries/{token}/ack")
    assert (status, problem["type"]) == (404, "urn:tensorbus:problem:not-found")
    assert running.call("POST", f"/v1/consumers/one/deliveries/{token}/ack")[0] == 204
    status, problem = running.call("POST", f"/v1/consumers/one/deliveries/{token}/ack")
    assert (status, problem["type"]) == (409, "urn:tensorbus:problem:already-settled")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8", "fp4", "nf4", "nf4-dq"])
async def test_non_finite_values_are_refused_by_tensor(running: Running, codec: str, value: float) -> None:
    """A tensor to be quantised that holds NaN or Inf is refused at the publisher, naming the tensor."""
    weights = np.ones(100_000, np.float32)
    weights[77_777] = value
    async with Client(running.url) as bus:
        with pytest.raises(NonFiniteValues, match=r"layers\.3\.weight"):
            await bus.publish("bad.values", {"good": np.ones(9), "layers.3.weight": weights}, codec=codec)


async def test_unknown_codecs_and_dtypes_are_refused_by_name(running: Running) -> None:
    """A codec that is not installed and an array of a dtype that has no name here are refused."""
    async with Client(running.url) as bus:
        with pytest.raises(UnknownCodec, match="nf3"):
            await bus.publish("bad.codec", {"w": np.ones(3)}, codec="nf3")
        with pytest.raises(UnsupportedDtype, match="when"):
            await bus.publish("bad.dtype", {"when": np.zeros(3, "datetime64[s]")})


def refused(process: subprocess.Popen[str]) -> str:
    """What a broker that does not come up says."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said


def test_a_port_in_use_is_said(running: Running, tmp_path: Path) -> None:
    """A second broker on the same port ends with exit code 1 and names the port."""
    port = str(urlsplit(running.url).port)
    assert port in refused(start(tmp_path / "other", "--port", port))


def test_a_data_directory_in_use_is_said(running: Running) -> None:
    """A second broker on the same directory ends with exit code 1 and names the directory."""
    assert str(running.data) in refused(start(running.data, "--port", "0"))


def test_a_data_directory_of_a_newer_version_is_said_and_left_alone(tmp_path: Path) -> None:
    """A directory that a newer release has written is refused, and not one byte of it is changed."""
    with broker(tmp_path) as found:
        assert found.publish("kept.model", b"".join(model()))[0] == 201
    with sqlite3.connect(tmp_path / "meta.db") as metadata:
        metadata.execute("PRAGMA user_version = 9999")
    metadata.close()
    before = (tmp_path / "meta.db").read_bytes()
    assert "newer" in refused(start(tmp_path, "--port", "0"))
    assert (tmp_path / "meta.db").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_refuses_what_is_new_and_keeps_what_is_there(tmp_path: Path) -> None:
    """507 for what does not fit; what was acknowledged stays; after a deletion there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28m", "tmpfs", str(disk)], check=True)
    try:
        with broker(disk / "data") as found:
            small, large = model(), b"".join(frames_of({"w": np.zeros(2 << 20, np.float32)}))
            assert found.publish("kept.model", b"".join(small))[0] == 201
            status, first = found.publish("kept.large", large)
            assert status == 201
            status, problem = found.publish("bad.large", large)
            assert (status, problem["type"]) == (507, "urn:tensorbus:problem:storage-full")
            assert found.call("DELETE", f"/v1/messages/{first['id']}")[0] == 204
            assert found.publish("kept.large", large)[0] == 201
            _, listed = found.call("GET", "/v1/messages")
            messages = listed["messages"]
            assert isinstance(messages, list)
            assert len(messages) == 2  # pyright: ignore[reportUnknownArgumentType]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
