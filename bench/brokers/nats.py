"""NATS JetStream over a small client on a socket: publishing with a window, one durable pull consumer."""

from __future__ import annotations

import json
from time import monotonic, sleep
from typing import BinaryIO, cast

from .child import ready, tell
from .load import MIB, Load, connect, pieces

SUBJECT = "bench"
STREAM = "BENCH"
CONSUMER = "bench"


class Nats:
    """One connection; its messages come in order."""

    def __init__(self, load: Load) -> None:
        self.connection = connect(load)
        self._reader = cast("BinaryIO", self.connection.makefile("rb", MIB // 4))
        self._reader.readline()
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        self.connection.sendall(b"CONNECT %s\r\nPING\r\n" % json.dumps(options).encode())
        while self._reader.readline() != b"PONG\r\n":
            pass
        self._room = bytearray(2 * MIB)

    def send(self, subject: str, payload: bytes | memoryview = b"", reply: str = "") -> None:
        """Publish one message."""
        head = f"PUB {subject} {reply} {len(payload)}\r\n".encode()
        if len(payload) > MIB // 16:
            self.connection.sendmsg([head])
            self.connection.sendall(payload)
            self.connection.sendall(b"\r\n")
        else:
            self.connection.sendall(b"".join((head, payload, b"\r\n")))

    def subscribe(self, subject: str) -> None:
        """Messages of this subject come from now on."""
        self.connection.sendall(f"SUB {subject} 1\r\n".encode())

    def next(self) -> tuple[str, str, memoryview]:
        """Subject, reply subject and payload of the next message; the payload is valid until the next."""
        while True:
            words = self._reader.readline().decode().split()
            if words[0] == "PING":
                self.connection.sendall(b"PONG\r\n")
            elif words[0] in ("MSG", "HMSG"):
                break
            elif words[0] == "-ERR":
                raise RuntimeError(" ".join(words))
        size = int(words[-1])
        skipped = int(words[-2]) if words[0] == "HMSG" else 0
        replied = len(words) > (5 if words[0] == "HMSG" else 4)
        view = memoryview(self._room)[: size + 2]
        self._reader.readinto(view)  # type: ignore[attr-defined]
        return words[1], words[3] if replied else "", view[skipped:size]

    def request(self, subject: str, document: object) -> dict[str, object]:
        """Ask JetStream for something; needs ``_INBOX.api`` to be subscribed to."""
        self.send(subject, json.dumps(document).encode(), "_INBOX.api")
        answer = cast("dict[str, object]", json.loads(bytes(self.next()[2])))
        if "error" in answer:
            raise RuntimeError(f"{subject}: {answer['error']}")
        return answer


def _make_stream(load: Load) -> None:
    nats = Nats(load)
    nats.subscribe("_INBOX.api")
    stream = {"name": STREAM, "subjects": [SUBJECT], "storage": "file", "retention": "limits"}
    nats.request(f"$JS.API.STREAM.CREATE.{STREAM}", stream)
    config = {"durable_name": CONSUMER, "ack_policy": "explicit", "ack_wait": 60 * 10**9}
    config |= {"max_ack_pending": 10_000, "deliver_policy": "all"}
    nats.request(f"$JS.API.CONSUMER.CREATE.{STREAM}.{CONSUMER}", {"stream_name": STREAM, "config": config})
    nats.connection.close()


def publish(load: Load) -> None:
    """The large message in messages of 1 MiB, all acknowledged."""
    _publish(load, list(pieces(load.size)))


def publish_small(load: Load) -> None:
    """Many small messages, each with its number in front."""
    rest = bytes(load.size - 8)
    _publish(load, [number.to_bytes(8, "little") + rest for number in range(load.count)])


def _publish(load: Load, bodies: list[memoryview] | list[bytes]) -> None:
    nats = Nats(load)
    nats.subscribe("_INBOX.acks")
    sent = [0.0] * len(bodies)
    begun = acknowledged = 0
    ready()
    started = monotonic()
    while acknowledged < len(bodies):
        while begun < len(bodies) and begun - acknowledged < load.window:
            now = monotonic()
            due = started + begun / load.rate if load.rate else now
            if now < due:
                if begun > acknowledged:
                    break
                sleep(due - now)
            sent[begun] = monotonic()
            nats.send(SUBJECT, bodies[begun], "_INBOX.acks")
            begun += 1
        answer = bytes(nats.next()[2])
        if b'"seq"' not in answer:
            raise RuntimeError(f"not acknowledged: {answer!r}")
        acknowledged += 1
    tell(started=started, finished=monotonic(), **({"sent": sent} if load.count > 1 else {}))


def subscribe(load: Load) -> None:
    """The large message's messages, each acknowledged."""
    count = -(-load.size // MIB)
    finished, received, _ = _subscribe(load, count, 16)
    tell(finished=finished, received=received)


def subscribe_small(load: Load) -> None:
    """Many small messages, each acknowledged."""
    finished, _, got = _subscribe(load, load.count, 256)
    tell(finished=finished, got=got)


def _subscribe(load: Load, count: int, batch: int) -> tuple[float, int, list[float]]:
    _make_stream(load)
    nats = Nats(load)
    nats.subscribe("_INBOX.next")
    got = [0.0] * count
    taken = asked = received = 0
    tell(ready=True)
    while taken < count:
        if asked - taken <= batch // 2:
            document = json.dumps({"batch": batch, "expires": 60 * 10**9}).encode()
            nats.send(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", document, "_INBOX.next")
            asked += batch
        _, reply, payload = nats.next()
        if not reply:
            raise RuntimeError(f"instead of a message: {bytes(payload)!r}")
        if load.count > 1:
            got[int.from_bytes(payload[:8], "little")] = monotonic()
        received += len(payload)
        taken += 1
        nats.send(reply, b"+ACK")
    return monotonic(), received, got
