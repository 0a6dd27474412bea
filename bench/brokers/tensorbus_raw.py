"""Tensorbus over HTTP on plain sockets: a client that is not the limit."""

from __future__ import annotations

import selectors
import socket
from time import monotonic
from typing import cast

from .child import ready, tell
from .http import Http
from .load import MIB, TOPIC, Load, connect, frames, small_body

FRAMES = "application/vnd.tensorbus.frames"
CONSUMER = "/v1/consumers/bench"
PATH = f"/v1/topics/{TOPIC}/messages"


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
    """Many small messages, each acknowledged, on as many connections as may be unacknowledged at a time."""
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
    """Take deliveries with their frames, as many as there are at a time, and acknowledge them together."""
    http = Http(load)
    http.call("PUT", CONSUMER, {"filter": TOPIC, "max_ack_pending": 4 * load.window})
    got = [0.0] * load.count
    received = 0
    tell(ready=True)
    ask = {"max": min(256, load.window), "wait": 30, "inline": 64 << 10}
    while received < load.count:
        given = http.call("POST", f"{CONSUMER}/deliveries", ask)
        deliveries = cast("list[dict[str, object]]", given["deliveries"])
        now = monotonic()
        for delivery in deliveries:
            message = cast("dict[str, dict[str, int]]", delivery["message"])
            got[message["headers"]["n"]] = now
            if "frames" not in delivery:
                raise RuntimeError("the broker sends no frames along with deliveries")
        received += len(deliveries)
        tokens = [delivery["token"] for delivery in deliveries]
        http.call("POST", f"{CONSUMER}/acks", {"tokens": tokens})
    tell(finished=monotonic(), got=got)
