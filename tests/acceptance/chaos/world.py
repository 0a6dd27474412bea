"""The processes of a chaos run, and what happens to them."""

from __future__ import annotations

import heapq
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from crashing.wire import Unreachable, Wire
from tensorbus.aggregator.job import seed_topic
from tensorbus.bus.client.sync import SyncClient

from .archive import Archive
from .plan import AGGREGATOR, BROKER, Dealer, Event
from .training import JOB, first_model

SITES = tuple(f"s{at}" for at in range(8))
READY_WITHIN = 60.0
ROUND_WITHIN = 90.0
"""Seconds that any one round may take before the run counts as stuck, on a machine that does a lot else."""
TICK = 0.01
ROOT = Path(__file__).parents[1]
_CRASHING = Path(__file__).parents[2] / "crash"


class Stuck(AssertionError):
    """Something did not come to its end, or ended in a way that it should not."""


class World:
    """A broker, an aggregator and its sites. Use as a context manager.

    Args:
        folder: for everything.
        options: of ``tensorbus aggregate``, besides job, sites, rounds and deadline.
        rounds: in which things go wrong; one more follows in which nothing does.
    """

    def __init__(self, folder: Path, options: Sequence[str], rounds: int, deadline: float, seed: str) -> None:
        self.rounds = rounds
        self.dealer = Dealer(random.Random(seed), SITES, deadline)
        self._folder = folder
        self._seed = seed
        self._options = [*options, "--rounds", str(rounds + 1), "--deadline", str(deadline)]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._port: int = listening.getsockname()[1]
        self._url = f"http://127.0.0.1:{self._port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._older: list[subprocess.Popen[bytes]] = []
        self._stopped: dict[str, subprocess.Popen[bytes]] = {}
        self._coming: list[tuple[float, Event]] = []
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(_CRASHING)])}

    def __enter__(self) -> Self:
        self._start(BROKER)
        self._await_broker()
        with SyncClient(self._url) as bus:
            bus.publish(seed_topic(JOB), first_model())
        self.archive = Archive(self._folder, self._port)
        self._start(AGGREGATOR)
        for site in SITES:
            self._start(site)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self._processes.values(), *self._older]:
            process.kill()
            process.wait()
        self.archive.close()

    def run(self) -> float:
        """All rounds, to the end of every process; the seconds that the longest round took.

        Raises:
            Stuck: a round does not end, or a process ended that should not.
        """
        longest, begun, number = 0.0, time.monotonic(), 0
        while self._processes[AGGREGATOR].poll() != 0:
            now = time.monotonic()
            if self.archive.complete > number:
                longest, begun, number = max(longest, now - begun), now, number + 1
                if number <= self.rounds:
                    for event in self.dealer.deal():
                        heapq.heappush(self._coming, (now + event.at, event))
            while self._coming and self._coming[0][0] <= now:
                self._do(heapq.heappop(self._coming)[1])
            self._look_after()
            if now - begun > ROUND_WITHIN:
                raise Stuck(f"round {number} does not end: {self.log(AGGREGATOR)[-3000:]}")
            time.sleep(TICK)
        while self._coming:  # the dead come back, to hear that it is over
            self._do(heapq.heappop(self._coming)[1])
        for site in SITES:
            if self._processes[site].wait(ROUND_WITHIN):
                raise Stuck(f"{site} ended with {self._processes[site].returncode}: {self.log(site)[-3000:]}")
        return longest

    def log(self, who: str) -> str:
        """What it wrote, in all its lives."""
        return (self._folder / f"{who}.log").read_text(errors="replace")

    def finals(self) -> list[str]:
        """What each site calls the final model."""
        return [self.log(site).splitlines()[-1] for site in SITES]

    # --- one deed ------------------------------------------------------------------------------------

    def _do(self, event: Event) -> None:
        who = event.who
        match event.deed:
            case "kill":
                self._processes[who].kill()
                self._processes[who].wait()
            case "start":
                if self._processes[who].poll() is not None:
                    self._start(who)
            case "pause":
                self._stopped[who] = self._processes[who]
                self._stopped[who].send_signal(signal.SIGSTOP)
            case "continue":
                self._stopped[who].send_signal(signal.SIGCONT)
            case "double":
                if who == AGGREGATOR:
                    self._older.append(self._processes[who])
                    self._start(who)
                else:
                    self._end_double(who)  # of a round before; they have one state folder
                    self._start(who, f"{who}-again")
            case "single":
                self._end_double(who)

    def _end_double(self, site: str) -> None:
        if (process := self._processes.get(f"{site}-again")) is not None:
            process.kill()
            process.wait()

    def _look_after(self) -> None:
        """Start again what ended because it had to; complain of everything else."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is None or code == -signal.SIGKILL or (code == 0 and name != BROKER):
                continue
            if name == AGGREGATOR and "has taken over job" in self.log(AGGREGATOR)[-2000:]:
                self._older = [older for older in self._older if older.poll() is None]
                if self._older:
                    self._processes[name] = self._older.pop()
                else:
                    self._start(name)  # as whoever runs it would
                return
            raise Stuck(f"{name} ended with {code}: {self.log(name.removesuffix('-again'))[-3000:]}")

    def _start(self, who: str, name: str | None = None) -> None:
        name = name or who
        with (self._folder / f"{who}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *self._command(who, name)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def _command(self, who: str, name: str) -> list[str]:
        if who == BROKER:
            return [
                "tensorbus",
                "serve",
                "--port",
                str(self._port),
                "--data",
                str(self._folder / "data"),
                "--json",
            ]
        if who == AGGREGATOR:
            common = ["--job", JOB, "--sites", str(len(SITES)), "--url", self._url, "--json"]
            common += ["--state", str(self._folder / "kept"), *self._options]
            return ["tensorbus", "aggregate", *common]
        state = self._folder / "states" / name
        return ["chaos.site", self._url, who, str(self._folder), str(state), self._seed]

    def _await_broker(self) -> None:
        wire, until = Wire(self._port), time.monotonic() + READY_WITHIN
        while time.monotonic() < until:
            try:
                if wire.call("GET", "/readyz").status == 200:
                    return
            except Unreachable:
                time.sleep(TICK)
        raise Stuck(f"the broker did not start: {self.log(BROKER)[-3000:]}")
