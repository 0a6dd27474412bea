"""A network namespace for each server, joined by a bridge, so that cables can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Self


class Network:
    """Namespaces on a bridge of this machine; use as a context manager. Needs root.

    Args:
        count: of namespaces.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._name = f"tb{os.getpid() % 100_000}"
        self._subnet = f"10.213.{os.getpid() % 250}"

    @staticmethod
    def possible() -> bool:
        """Whether this process may make namespaces."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        made = subprocess.run(["ip", "netns", "add", "tb-probe"], check=False, capture_output=True)
        if made.returncode == 0:
            _ip("netns", "del", "tb-probe")
        return made.returncode == 0

    def host(self, number: int) -> str:
        """The address of a namespace."""
        return f"{self._subnet}.{number + 1}"

    def command(self, number: int) -> list[str]:
        """What has to stand before a command that runs in a namespace."""
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def cut(self, number: int) -> None:
        """Nothing gets in or out; nobody is told."""
        _ip("link", "set", f"{self._name}v{number}", "down")

    def heal(self, number: int) -> None:
        """As before."""
        _ip("link", "set", f"{self._name}v{number}", "up")

    def slow_down(self) -> bool:
        """20 ms of delay and 1 % of loss on the way out of each namespace, where the kernel has netem."""
        rule = [
            "tc",
            "qdisc",
            "replace",
            "dev",
            "eth0",
            "root",
            "netem",
            "delay",
            "20ms",
            "5ms",
            "loss",
            "1%",
        ]
        done = [
            subprocess.run([*self.command(number), *rule], check=False, capture_output=True).returncode
            for number in range(self._count)
        ]
        return not any(done)

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("addr", "add", f"{self._subnet}.254/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            for number in range(self._count):
                space, cable = f"{self._name}-{number}", f"{self._name}v{number}"
                _ip("netns", "add", space)
                _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", cable, "master", self._name, "up")
                _ip("-n", space, "addr", "add", f"{self.host(number)}/24", "dev", "eth0")
                _ip("-n", space, "link", "set", "eth0", "up")
                _ip("-n", space, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self._count):
            subprocess.run(["ip", "netns", "del", f"{self._name}-{number}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
