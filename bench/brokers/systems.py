"""The systems that are compared: which server, and which program at both ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme

from . import servers
from .servers import Running

Start = Callable[[Path], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class System:
    """One row.

    Attributes:
        name: in the table.
        start: its server, for a folder.
        ends: module of this package with the programs at both ends.
        follow: whether a subscriber gets a large message while it is published; what a stream of pieces of
            1 MiB is by nature.
        tls: whether the connections are encrypted.
        bulk, small: which of the two loads it is measured with.
    """

    name: str
    start: Start
    ends: str
    follow: bool = False
    tls: bool = False
    bulk: bool = True
    small: bool = False


@contextmanager
def _with_tls(folder: Path) -> Generator[Running]:
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    options = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    with servers.tensorbus(folder, *options) as running:
        yield running


def _tensorbus(*options: str) -> Start:
    return lambda folder: servers.tensorbus(folder, *options)


def _redis(*options: str) -> Start:
    return lambda folder: servers.redis(folder, *options)


FILES = ("--appendonly", "yes", "--appendfsync")

SYSTEMS = (
    System("raw TCP, two hops", partial(servers.relay, paced=True), "raw_paced"),
    System("raw TCP, two hops, unpaced", servers.relay, "raw"),
    System("Tensorbus, relay: followed live, no fsync", _tensorbus("--sync", "never"), "tensorbus_raw", True),
    System("Tensorbus, durable, followed", _tensorbus(), "tensorbus_raw", True, small=True),
    System("Tensorbus, durable, stored first", _tensorbus(), "tensorbus_raw"),
    System(
        "Tensorbus, durable, a request for each", _tensorbus(), "tensorbus_singly", bulk=False, small=True
    ),
    System("Tensorbus, durable, followed, own client", _tensorbus(), "tensorbus_client", True, small=True),
    System("Tensorbus, durable, stored first, own client", _tensorbus(), "tensorbus_client"),
    System("Tensorbus, durable, followed, TLS", _with_tls, "tensorbus_raw", True, tls=True),
    System("JetStream, files", servers.nats, "nats", small=True),
    System("JetStream, files, sync always", partial(servers.nats, sync_always=True), "nats", small=True),
    System("JetStream, files, nats-py", servers.nats, "nats_py"),
    System(
        "JetStream, files, sync always, nats-py",
        partial(servers.nats, sync_always=True),
        "nats_py",
        bulk=False,
        small=True,
    ),
    System("Redis Streams", _redis(), "redis", small=True),
    System("Redis Streams, append-only file, fsync always", _redis(*FILES, "always"), "redis", small=True),
)


@contextmanager
def fresh_folder(scratch: str) -> Generator[Path]:
    """An empty folder for one row, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="tensorbus-bench-", dir=scratch or None) as folder:
        yield Path(folder)
