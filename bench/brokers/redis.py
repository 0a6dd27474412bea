"""Redis Streams over a small client on a socket: XADD with a window, XREADGROUP and XACK."""

from __future__ import annotations

from time import monotonic, sleep
from typing import BinaryIO, cast

from .child import ready, tell
from .load import MIB, Load, connect, pieces

Answer = int | bytes | None | list["Answer"]


class Redis:
    """One connection; answers come in the order of the commands."""

    def __init__(self, load: Load) -> None:
        self._connection = connect(load)
        self._reader = cast("BinaryIO", self._connection.makefile("rb", MIB // 4))

    def send(self, *words: bytes | memoryview) -> None:
        """One command; its answer is read by `answer`."""
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            if len(word) > MIB // 16:
                self._connection.sendall(b"".join((*parts, b"$%d\r\n" % len(word))))
                self._connection.sendall(word)
                parts = [b"\r\n"]
            else:
                parts += [b"$%d\r\n" % len(word), word, b"\r\n"]
        self._connection.sendall(b"".join(parts))

    def answer(self) -> Answer:
        """The next answer; raises RuntimeError for an error."""
        line = self._reader.readline()
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"-":
                raise RuntimeError(rest.decode())
            case b"+":
                return rest
            case b":":
                return int(rest)
            case b"$":
                return self._reader.read(int(rest) + 2)[:-2] if rest != b"-1" else None
            case b"*":
                return [self.answer() for _ in range(int(rest))] if rest != b"-1" else None
            case _:
                raise RuntimeError(f"no answer of Redis: {line!r}")


def publish(load: Load) -> None:
    """The large message in entries of 1 MiB, all acknowledged."""
    _publish(load, list(pieces(load.size)))


def publish_small(load: Load) -> None:
    """Many small entries, each with its number in front."""
    rest = bytes(load.size - 8)
    _publish(load, [number.to_bytes(8, "little") + rest for number in range(load.count)])


def _publish(load: Load, bodies: list[memoryview] | list[bytes]) -> None:
    redis = Redis(load)
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
            redis.send(b"XADD", b"bench", b"*", b"d", bodies[begun])
            begun += 1
        redis.answer()
        acknowledged += 1
    tell(started=started, finished=monotonic(), **({"sent": sent} if load.count > 1 else {}))


def subscribe(load: Load) -> None:
    """The large message's entries, each acknowledged."""
    finished, received, _ = _subscribe(load, -(-load.size // MIB), 4)
    tell(finished=finished, received=received)


def subscribe_small(load: Load) -> None:
    """Many small entries, acknowledged together."""
    finished, _, got = _subscribe(load, load.count, 256)
    tell(finished=finished, got=got)


def _subscribe(load: Load, count: int, batch: int) -> tuple[float, int, list[float]]:
    redis = Redis(load)
    redis.send(b"XGROUP", b"CREATE", b"bench", b"group", b"0", b"MKSTREAM")
    redis.answer()
    got = [0.0] * count
    taken = received = 0
    tell(ready=True)
    read = (b"XREADGROUP", b"GROUP", b"group", b"one", b"COUNT", b"%d" % batch, b"BLOCK", b"0")
    while taken < count:
        redis.send(*read, b"STREAMS", b"bench", b">")
        streams = cast("list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]", redis.answer())
        now = monotonic()
        entries = streams[0][1]
        for _, fields in entries:
            if load.count > 1:
                got[int.from_bytes(fields[1][:8], "little")] = now
            received += len(fields[1])
        taken += len(entries)
        redis.send(b"XACK", b"bench", b"group", *(entry for entry, _ in entries))
        redis.answer()
    return monotonic(), received, got
