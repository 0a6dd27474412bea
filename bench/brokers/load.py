"""What is sent: one large message in frames of 1 MiB, or many of 1 KiB."""

from __future__ import annotations

import json
import math
import socket
import ssl
from dataclasses import dataclass

import numpy as np

from tensorbus.bus.pacing import unpace
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.sources import open_source

from .tls import TlsEnd

TOPIC = "bench.bytes"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """One run, as both ends have to know it.

    Attributes:
        address: host and port of the server.
        size: bytes of a message.
        count: messages.
        window: messages that may be unacknowledged at a time.
        rate: messages a second; 0 is as fast as they are taken.
        follow: whether the subscriber takes a large message while it is published.
        certificate: file of the authority that signed the server's certificate; empty without TLS.
    """

    address: tuple[str, int]
    size: int
    count: int = 1
    window: int = 1
    rate: float = 0.0
    follow: bool = False
    certificate: str = ""

    @classmethod
    def parse(cls, text: str) -> Load:
        """What JSON of its fields says."""
        given = json.loads(text)
        host, port = given.pop("address")
        return cls((host, port), **given)

    @property
    def url(self) -> str:
        """Of the server, for HTTP."""
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{self.address[0]}:{self.address[1]}"


def connect(load: Load, paced: bool = False) -> socket.socket:
    """A blocking connection, which sends small things at once, and large ones without pauses.

    With ``paced`` it does so as the system is set to; see `tensorbus.bus.pacing`.
    """
    connection = socket.socket()
    if not paced:
        unpace(connection, load.address)
    connection.connect(load.address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def connect_encrypted(load: Load) -> TlsEnd:
    """The same with TLS, to a server whose certificate is checked."""
    context = ssl.create_default_context(cafile=load.certificate)
    return TlsEnd(connect(load), context, "localhost")


def values(size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """``size`` bytes of normally distributed numbers that lie in memory, from one random tile."""
    tile = np.random.default_rng(1).standard_normal(min(size, 64 * MIB) // 4, np.float32)
    return np.resize(tile, size // 4)


def pieces(size: int) -> list[memoryview]:
    """The same bytes in pieces of 1 MiB, for brokers that take messages of that size."""
    whole = memoryview(values(size).data).cast("B")
    return [whole[start : start + MIB] for start in range(0, size, MIB)]


def frames(size: int) -> tuple[list[bytes | memoryview], int]:
    """A message body with ``size`` bytes of values in frames of 1 MiB, and its length; nothing is copied."""
    encoder = ContainerEncoder(open_source({"weight": values(size)}), Pipeline.parse(None), {})
    parts: list[bytes | memoryview] = []
    for frame in encoder.frames(BufferPool(1).acquire):
        parts += [frame.head, frame.payload] if frame.payload else [frame.head]
    return parts, sum(map(len, parts))


def small_body(number: int, size: int) -> bytes:
    """A message body with ``size`` bytes of values; its header ``n`` is its number."""
    source = open_source(bytes(size))
    encoder = ContainerEncoder(source, Pipeline.parse(None), {"n": number})
    made = encoder.frames(BufferPool(1).acquire)
    return b"".join(bytes(part) for frame in made for part in (frame.head, frame.payload))


def median(figures: list[float]) -> float:
    """The middle one; NaN of none."""
    ordered = sorted(figures)
    if not ordered:
        return math.nan
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
