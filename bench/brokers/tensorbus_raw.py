"""Tensorbus over HTTP on plain sockets: a client that is not the limit."""

from __future__ import annotations

import selectors
import socket
import struct
from time import monotonic
from typing import cast

from tensorbus.bus.streams import RecordParser

from .child import ready, tell
from .http import Http
from .load import MIB, TOPIC, Load, connect, frames, small_body

FRAMES = "application/vnd.tensorbus.frames"
CONSUMER = "/v1/consumers/bench"
PATH = f"/v1/topics/{TOPIC}/messages"
BATCH = "application/vnd.tensorbus.batch"
DELIVERIES = "application/vnd.tensorbus.deliveries"
BATCH_PATH = f"/v1/topics/{TOPIC}/batch"


def publish(load: Load) -> None:
    """One large message, acknowledged."""
    parts, length = frames(load.size)
    http = Http(load)
    ready()
    started = monotonic()
    http.ask("POST", PATH, length, FRAMES)
    for part in parts:
        http.connection.sendall(part)
    http.answer()
    tell(started=started, finished=monotonic())


def subscribe(load: Load) -> None:
    """Take one delivery, read its frames, acknowledge it."""
    http = Http(load)
    http.call("PUT", CONSUMER, {"filter": TOPIC})
    buffer = memoryview(bytearray(MIB))
    tell(ready=True)
    found: list[dict[str, object]] = []
    while not found:
        given = http.call("POST", f"{CONSUMER}/deliveries", {"max": 1, "wait": 30, "follow": load.follow})
        found = cast("list[dict[str, object]]", given["deliveries"])
    message = cast("dict[str, str]", found[0]["message"])
    http.ask("GET", f"/v1/messages/{message['id']}/frames")
    status = http.head()
    received = http.drain(buffer)
    finished = monotonic()
    http.call("POST", f"{CONSUMER}/deliveries/{found[0]['token']}/ack", {})
    tell(finished=finished, received=received, status=status)


def publish_small(load: Load) -> None:
    """Many small messages in batches: what waits goes together, half of the window on each of two ways."""
    records: list[bytes] = []
    for number in range(load.count):
        body = small_body(number, load.size)
        records.append(struct.pack("<II", 0, len(body)) + body)
    selector = selectors.DefaultSelector()
    idle = [connect(load) for _ in range(2)]
    for connection in idle:
        selector.register(connection, selectors.EVENT_READ)
    under_way: dict[socket.socket, int] = {}
    sent = [0.0] * load.count
    begun = answered = 0
    ready()
    started = monotonic()
    while answered < load.count:
        now = monotonic()
        due = load.count if not load.rate else min(load.count, int((now - started) * load.rate) + 1)
        while idle and begun < due:
            batch = records[begun : min(due, begun + load.window // 2)]
            sent[begun : begun + len(batch)] = [monotonic()] * len(batch)
            body = b"".join(batch)
            head = f"POST {BATCH_PATH} HTTP/1.1\r\nHost: b\r\nContent-Type: {BATCH}\r\n"
            connection = idle.pop()
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            under_way[connection] = len(batch)
            begun += len(batch)
        patience = None
        if load.rate and idle and begun < load.count:
            patience = max(0.0, started + begun / load.rate - monotonic())
        for key, _ in selector.select(patience):
            connection = cast("socket.socket", key.fileobj)
            count = under_way.pop(connection)
            _check_batch(connection, count)
            idle.append(connection)
            answered += count
    tell(started=started, finished=monotonic(), sent=sent)


def _check_batch(connection: socket.socket, count: int) -> None:
    """Read an answer, and see that it acknowledges all of a batch."""
    answer = b""
    while not answer.endswith(b"}]}"):
        got = connection.recv(256 << 10)
        answer += got
        if not got or not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not acknowledged: {answer!r}")
    if answer.count(b'"seq": ') != count:
        raise RuntimeError(f"not all acknowledged: {answer!r}")


def publish_small_singly(load: Load) -> None:
    """Many small messages, a request each, on as many connections as may be unacknowledged at a time."""
    bodies = [small_body(number, load.size) for number in range(load.count)]
    selector = selectors.DefaultSelector()
    idle = [connect(load) for _ in range(load.window)]
    for connection in idle:
        selector.register(connection, selectors.EVENT_READ)
    sent = [0.0] * load.count
    begun = answered = 0
    ready()
    started = monotonic()
    while answered < load.count:
        while idle and begun < load.count:
            now = monotonic()
            if load.rate and now < started + begun / load.rate:
                break
            body = bodies[begun]
            head = f"POST {PATH} HTTP/1.1\r\nHost: b\r\nContent-Type: {FRAMES}\r\nContent-Length: {len(body)}"
            sent[begun] = now
            idle.pop().sendall(head.encode() + b"\r\n\r\n" + body)
            begun += 1
        patience = None
        if load.rate and idle and begun < load.count:
            patience = max(0.0, started + begun / load.rate - monotonic())
        for key, _ in selector.select(patience):
            connection = cast("socket.socket", key.fileobj)
            _check(connection.recv(4096))
            idle.append(connection)
            answered += 1
    tell(started=started, finished=monotonic(), sent=sent)


def _check(answer: bytes) -> None:
    if not answer.startswith(b"HTTP/1.1 201") or not answer.endswith(b"}"):
        raise RuntimeError(f"not acknowledged: {answer!r}")


def subscribe_small(load: Load) -> None:
    """Take deliveries with their frames from a stream, as they come, and acknowledge what has come together,
    while the next ones come."""
    http, stream = Http(load), Http(load)
    http.call("PUT", CONSUMER, {"filter": TOPIC, "max_ack_pending": 10_000})
    stream.ask("GET", f"{CONSUMER}/deliveries/stream?max=1024&inline=65536", accept=DELIVERIES)
    if stream.head() != 200:
        raise RuntimeError("no stream of deliveries")
    got = [0.0] * load.count
    received = 0
    tokens: list[str] = []
    settling = False
    parser = RecordParser()
    selector = selectors.DefaultSelector()
    for connection in (http, stream):
        selector.register(connection.connection, selectors.EVENT_READ, connection)
    tell(ready=True)
    chunks = stream.chunks()
    while received < load.count or settling or tokens:
        for key, _ in selector.select():
            if key.data is http:
                _check_acks(http.answer())
                settling = False
                continue
            found = [record for record in parser.feed(next(chunks)) if record[0]]  # no signs of life
            now = monotonic()
            for head, body in found:
                if not body:
                    raise RuntimeError(f"instead of a delivery with its frames: {head}")
                delivery = cast("dict[str, object]", head["delivery"])
                message = cast("dict[str, dict[str, int]]", delivery["message"])
                got[message["headers"]["n"]] = now
                tokens.append(cast("str", delivery["token"]))
            received += len(found)
        if tokens and not settling:
            http.send("POST", f"{CONSUMER}/acks", {"tokens": tokens[:256]})
            del tokens[:256]
            settling = True
    tell(finished=monotonic(), got=got)


def _check_acks(answer: dict[str, object]) -> None:
    if answer["failed"]:
        raise RuntimeError(f"not acknowledged: {answer['failed']!r}")
