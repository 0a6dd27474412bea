"""A network namespace for each server, joined by cables that can be long, bad, or cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

_CABLES = Path(__file__).with_name("cables.py")
_QUEUE = "4000"
"""Packets that wait for a cable."""


class Network:
    """Namespaces, and this machine among them; use as a context manager. Needs root, and /dev/net/tun.

    Args:
        count: of namespaces.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._name = f"tb{os.getpid() % 100_000}"
        self._subnet = f"10.213.{os.getpid() % 250}"
        self._cables: subprocess.Popen[bytes] | None = None
        self._cut: set[int] = set()
        self._quality = {"delay": 0.0, "jitter": 0.0, "loss": 0.0}

    @staticmethod
    def missing() -> str | None:
        """Why this process may not make one; None if it may."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        if shutil.which("ip") is None:
            return "ip, of Debian's package iproute2, is not installed"
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            return "there is no /dev/net/tun"
        made = subprocess.run(["ip", "netns", "add", "tb-probe"], check=False, capture_output=True, text=True)
        if made.returncode != 0:
            return f"no network namespace can be made: {made.stderr.strip()}"
        _ip("netns", "del", "tb-probe")
        return None

    def host(self, number: int) -> str:
        """The address of a namespace; that behind the last one is this machine's own."""
        return f"{self._subnet}.{number + 1}"

    def command(self, number: int) -> list[str]:
        """What has to stand before a command that runs in a namespace."""
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def cut(self, number: int) -> None:
        """Nothing gets in or out; nobody is told."""
        self._cut.add(number)
        self._tell()

    def heal(self, number: int) -> None:
        """As before."""
        self._cut.discard(number)
        self._tell()

    def slow_down(self, delay: float, jitter: float, loss: float) -> None:
        """From now on each packet takes ``delay`` ± ``jitter`` seconds, and is lost with this probability."""
        self._quality = {"delay": delay, "jitter": jitter, "loss": loss}
        self._tell()

    def _tell(self) -> None:
        assert self._cables is not None
        assert self._cables.stdin is not None
        self._cables.stdin.write(json.dumps({**self._quality, "cut": sorted(self._cut)}).encode() + b"\n")
        self._cables.stdin.flush()

    def __enter__(self) -> Self:
        devices = [f"{self._name}v{number}" for number in range(self._count + 1)]
        try:
            self._cables = subprocess.Popen(
                [sys.executable, str(_CABLES), *devices], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._cables.stdout is not None
            assert self._cables.stdout.readline(), "the cables cannot be made"
            for number, device in enumerate(devices[:-1]):
                space = f"{self._name}-{number}"
                _ip("netns", "add", space)
                _ip("link", "set", device, "netns", space, "name", "eth0")
                _ip("-n", space, "link", "set", "lo", "up")
                self._plug_in("eth0", number, "-n", space)
            self._plug_in(devices[-1], self._count)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _plug_in(self, device: str, number: int, *where: str) -> None:
        _ip(*where, "addr", "add", f"{self.host(number)}/24", "dev", device)
        _ip(*where, "link", "set", device, "txqueuelen", _QUEUE, "up")

    def __exit__(self, *_: object) -> None:
        if self._cables is not None:
            for pipe in (self._cables.stdin, self._cables.stdout):
                if pipe is not None:
                    pipe.close()
            self._cables.wait()
        for number in range(self._count):
            subprocess.run(["ip", "netns", "del", f"{self._name}-{number}"], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
