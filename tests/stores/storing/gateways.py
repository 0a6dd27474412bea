"""Processes of `tensorbus serve --store`, which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from .network import Network

_PATIENCE = 30.0


class Gateways:
    """Brokers that share a store; use as a context manager, which ends them.

    Args:
        folder: for their logs and their data directories.
        address: of the store.
        network: that each is to be in a namespace of; None for loopback.
        first: the namespace of the first one.
        options: more of them, of `tensorbus serve`.
        trusted: the authority of certificates that they trust; None for the system's.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        network: Network | None = None,
        first: int = 0,
        options: Sequence[str] = (),
        trusted: Path | None = None,
    ) -> None:
        self._options = options
        self._trusted = trusted
        self._folder = folder
        self._network = network
        self._first = first
        self._address = address
        self._processes: list[subprocess.Popen[str]] = []
        self.urls: list[str] = []

    def start(self, trusted: Path | None = None) -> int:
        """Start one more, which may trust another authority; its number."""
        number = len(self._processes)
        log = (self._folder / f"gateway-{number}.log").open("w")
        command = [sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--json"]
        if self._network is not None:
            place = self._first + number
            command = [*self._network.command(place), *command, "--allow-remote"]
            command += ["--host", self._network.host(place)]
        command += ["--data", str(self._folder / f"data-{number}"), "--store", self._address]
        command += self._options
        environment = dict(os.environ)
        if (ca := trusted or self._trusted) is not None:
            environment["SSL_CERT_FILE"] = str(ca)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        log.close()
        self._processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log(number)
        self.urls.append(json.loads(line)["url"])
        return number

    def log(self, number: int) -> str:
        """What one of them has said."""
        return (self._folder / f"gateway-{number}.log").read_text()

    def leader(self, other_than: int | None = None) -> int:
        """The number of the one that leads, once there is one; it said so last."""
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            for number, process in enumerate(self._processes):
                if number == other_than:
                    continue
                said = [line for line in self.log(number).splitlines() if _is_about_lead(line)]
                if process.poll() is None and said and said[-1].endswith("this broker leads"):
                    return number
            time.sleep(0.05)
        raise AssertionError("no broker takes the lead")

    def running(self) -> list[int]:
        """Numbers of those that were not killed."""
        return [number for number, process in enumerate(self._processes) if process.poll() is None]

    def kill(self, number: int) -> None:
        """End one at once."""
        self._processes[number].send_signal(signal.SIGKILL)
        self._processes[number].wait()

    def stop(self, number: int) -> int:
        """End one as whoever runs it does; its exit code. It may take half of what the store is given."""
        self._processes[number].terminate()
        return self._processes[number].wait(_PATIENCE)

    def freeze(self, number: int) -> None:
        """One does nothing any more, and does not know it."""
        os.kill(self._processes[number].pid, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """It goes on."""
        os.kill(self._processes[number].pid, signal.SIGCONT)

    def ready(self, number: int) -> None:
        """Wait until one answers requests that have to be decided."""
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            try:
                with urlopen(f"{self.urls[number]}/v1/consumers", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"gateway {number} does not answer: {self.log(number)[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _is_about_lead(line: str) -> bool:
    return line.endswith(("this broker leads", "this broker begins anew", " leads"))
