"""Cables between namespaces with delay, loss and reordering, in user space: a program, started by `Network`.

    python cables.py DEVICE… < commands

makes a TUN device of each name, which the starter moves to where it belongs, and passes IPv4 packets on
between them: the last number of an address is the place of its device among the names, counted from 1.
A packet takes its delay, and is lost by chance, each by itself, so with jitter they overtake each other. What
becomes of that (retransmission, order, congestion) is left to TCP, in the kernel, at both ends.

A command is a line of JSON: ``{"delay": 0.02, "jitter": 0.01, "loss": 0.01, "cut": [0, 2]}``. Times are
seconds, one way; ``loss`` is the part of the packets that is lost, ``cut`` names the devices that nothing
gets to or from. The program ends with its input.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from collections.abc import Sequence

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST = 1 << 16
_AT_ONCE = 64
"""Packets that are taken from one device before the others have their turn."""
_IPV4 = 4
_TO = 19
"""Where the last number of the address of destination is in a header of IPv4."""


class Cables:
    """One cable to each device, all joined.

    Args:
        names: of the devices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._devices = [_device(name) for name in names]
        self._places = {device: place for place, device in enumerate(self._devices)}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._chance = random.Random(1)
        self._delay = self._jitter = self._loss = 0.0
        self._cut: set[int] = set()

    def run(self, commands: int) -> None:
        """Until there are no more commands to come from this descriptor."""
        poll = select.epoll()
        for device in (*self._devices, commands):
            poll.register(device, select.EPOLLIN)
        heard = b""
        while True:
            for ready, _ in poll.poll(self._patience()):
                if ready != commands:
                    self._take(ready)
                elif part := os.read(commands, _LARGEST):
                    *lines, heard = (heard + part).split(b"\n")
                    for line in lines:
                        self._obey(line)
                else:
                    return
            self._let_go()

    def _obey(self, line: bytes) -> None:
        wanted = json.loads(line)
        self._delay, self._jitter, self._loss = wanted["delay"], wanted["jitter"], wanted["loss"]
        self._cut = set(wanted["cut"])

    def _patience(self) -> float:
        """Seconds until the next packet is due; -1 for ever."""
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else -1

    def _take(self, device: int) -> None:
        source = self._places[device]
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(device, _LARGEST)
            except OSError:  # there is none, or the device is not up yet
                return
            target = packet[_TO] - 1 if packet[0] >> 4 == _IPV4 else -1
            if not 0 <= target < len(self._devices) or self._chance.random() < self._loss:
                continue
            if source in self._cut or target in self._cut:
                continue
            due = time.monotonic() + self._delay + self._jitter * self._chance.uniform(-1, 1)
            self._count += 1
            heapq.heappush(self._waiting, (due, self._count, target, packet))

    def _let_go(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._waiting)
            if target in self._cut:
                continue
            try:
                os.write(self._devices[target], packet)
            except OSError:  # a device that is down, or full, loses packets as any does
                continue


def _device(name: str) -> int:
    """A descriptor of a new TUN device."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


if __name__ == "__main__":
    cables = Cables(sys.argv[1:])
    print("ready", flush=True)
    cables.run(sys.stdin.fileno())
