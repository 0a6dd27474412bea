"""The processes of a crash test: started, killed, started again; and the audit at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .checker import Violation, check
from .history import Event, History, Tally, read_events
from .payloads import FrameError, sha256, unpack
from .wire import Answer, Unreachable, Wire, shown

PACKAGE = Path(__file__).parent
READY_WITHIN = 60.0
"""Seconds that a broker may take to start, on a machine that does a lot else."""
DRAINED_WITHIN = 120.0
"""Seconds after the last kill by which everything must have been acknowledged and settled."""
BUSY_WITHIN = 60.0
"""Seconds in which something must be stored and acknowledged between two kills."""
TIDY_WITHIN = 15.0
"""Seconds after that by which policies must have removed what they remove."""
LIBRARY = "library"
"""The consumer that is left to workers with the client library."""
PAGE = 500
_PATH = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]


class Stuck(AssertionError):
    """Something did not come to an end within its time."""


@dataclass
class Plan:
    """What runs, and who is killed how often.

    Attributes:
        consumers: name to configuration, as the broker takes it.
        policies: the same of these.
        topics: what publishers publish on, in turn.
        publishers, workers: how many processes; consumers are dealt out to the workers' two threads in turn.
        library_publishers, library_workers: as many that use the client library; see there.
        weights: how likely a kind of process is the next to be killed.
        pace: mean of the seconds from one kill to the next.
        work: messages that must have been stored, and acked by workers, for each kill: a slow machine gets
            more time.
        serve: further options of ``tensorbus serve``.
        environment: further variables of the broker's process.
        troubled: the broker's disk fails now and then, so that it answers with 500 and 507.
    """

    consumers: Mapping[str, Mapping[str, object]]
    policies: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    topics: Sequence[str] = ("crash.t0", "crash.t1", "crash.t2")
    publishers: int = 2
    workers: int = 2
    library_publishers: int = 0
    library_workers: int = 0
    weights: Mapping[str, int] = field(default_factory=lambda: {"broker": 5, "publisher": 3, "worker": 2})
    pace: float = 0.25
    work: int = 0
    serve: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    troubled: bool = False


class World:
    """A broker on a directory of its own, its publishers and its workers. Use as a context manager.

    Args:
        folder: for the histories and, unless ``data`` is given, the broker's data.
        seed: of every choice that is made here and in the processes.
    """

    def __init__(self, folder: Path, plan: Plan, seed: int, data: Path | None = None) -> None:
        self.plan = plan
        self.seed = seed
        self.data = data or folder / "data"
        self.kills: dict[str, int] = dict.fromkeys(plan.weights, 0)
        self._folder = folder / "histories"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "broker.log").open("ab")
        self._chance = random.Random(seed)
        self._history = History(self._folder / "harness.jsonl")
        self._tally = Tally(self._folder)
        self._audits = 0
        self._port = _free_port()
        self._wire = Wire(self._port)
        self._broker: subprocess.Popen[bytes] | None = None
        self._others: dict[str, subprocess.Popen[bytes]] = {}
        self._troubled = "1" if plan.troubled else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self._others.values(), *([self._broker] if self._broker else [])]:
            process.kill()
            process.wait()
        self._log.close()

    # --- processes -----------------------------------------------------------------------------------

    @property
    def broker_log(self) -> str:
        """What the brokers wrote to standard error."""
        return Path(self._log.name).read_text(errors="replace")

    @property
    def port(self) -> int:
        """Of every broker of this world."""
        return self._port

    @property
    def ready(self) -> bool:
        """Whether the broker takes messages."""
        try:
            return self._wire.call("GET", "/readyz").status == 200
        except Unreachable:
            return False

    def start_broker(self, *, wait: bool = True) -> None:
        """Start the broker; ``wait`` until it says that it is ready."""
        command = [sys.executable, "-m", "tensorbus", "serve", "--json"]
        command += ["--port", str(self._port), "--data", str(self.data), *self.plan.serve]
        self._broker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | dict(self.plan.environment),
        )
        self._history.add(Event("started", who="broker"))
        if wait:
            self.await_broker()

    def await_broker(self) -> None:
        """Until the broker answers. Raises Stuck, with what it said, if it does not."""
        assert self._broker is not None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            if self._broker.poll() is not None:
                raise Stuck(f"the broker ended with {self._broker.returncode}: {self.broker_log[-3000:]}")
            if self.ready:
                return
            time.sleep(0.01)
        raise Stuck(f"the broker did not start within {READY_WITHIN:.0f} s: {self.broker_log[-3000:]}")

    def kill_broker(self) -> None:
        """SIGKILL."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGKILL)
        self._broker.communicate()
        self._history.add(Event("killed", who="broker"))

    def stop_broker(self) -> int:
        """SIGTERM; the exit code."""
        assert self._broker is not None
        self._broker.terminate()
        self._broker.communicate()
        return self._broker.returncode

    def start_others(self) -> None:
        """Create policies and consumers and start publishers and workers."""
        (self._folder / "enough").unlink(missing_ok=True)
        (self._folder / "drained").unlink(missing_ok=True)
        for name, policy in self.plan.policies.items():
            text = json.dumps(policy)
            self._expect(self._wire.call("PUT", f"/v1/policies/{name}", text.encode()), 200, 201)
            self._history.add(Event("policy", topic=str(policy["filter"]), text=text))
        for name, config in self.plan.consumers.items():
            self._expect(
                self._wire.call("PUT", f"/v1/consumers/{name}", json.dumps(config).encode()), 200, 201
            )
        for kind, count in (
            ("publisher", self.plan.publishers),
            ("worker", self.plan.workers),
            ("library_publisher", self.plan.library_publishers),
            ("library_worker", self.plan.library_workers),
        ):
            for number in range(count):
                self._start(f"{kind}{number}")

    def _start(self, name: str) -> None:
        kind = name.rstrip("0123456789")
        command = [sys.executable, "-m", f"{PACKAGE.name}.{kind}", str(self._port), str(self._folder), name]
        command.append(f"{self.seed}.{self._chance.random()}")
        if kind == "worker":
            command += self._consumers_of(int(name.removeprefix(kind)))
        self._others[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(_PATH), "CRASHING_TROUBLED": self._troubled}
            | {"CRASHING_TOPICS": ",".join(self.plan.topics)},
        )

    def _consumers_of(self, worker: int) -> list[str]:
        """The consumers of a worker's threads: dealt out in turn, so that each has one."""
        plain = [name for name in self.plan.consumers if name != LIBRARY]
        every = self.plan.workers
        return [plain[number % len(plain)] for number in (worker, worker + every)]

    # --- kills ---------------------------------------------------------------------------------------

    def kill_at_random(self, times: int) -> None:
        """Kill one process after another and start each again; ``times`` kills in all.

        A broker is mostly given the time to start, so that something happens between the kills; one in eight
        is killed while it starts, in the midst of its recovery.

        Raises:
            Stuck: nothing happens between the kills.
        """
        until = sum(self.kills.values()) + times
        while sum(self.kills.values()) < until:
            self._await_work()
            time.sleep(min(2.0, self._chance.expovariate(1 / self.plan.pace)))
            victim = self._chance.choices(list(self.plan.weights), list(self.plan.weights.values()))[0]
            if victim == "broker":
                if self._chance.random() < 0.875:
                    self.await_broker()
                    time.sleep(self._chance.uniform(0, 2 * self.plan.pace))
                self.kill_broker()
                self.start_broker(wait=False)
            else:
                self._kill_other(victim)
            self.kills[victim] += 1
        self.await_broker()

    def _await_work(self) -> None:
        """Until so much has been done that one more kill proves something."""
        least = self.plan.work * (sum(self.kills.values()) + 1)
        deadline = time.monotonic() + BUSY_WITHIN
        while min(self._tally.counts()[what] for what in ("stored", "acked")) < least:
            if time.monotonic() > deadline:
                raise Stuck(f"{dict(self._tally.counts())} after {self.kills}: {self.broker_log[-3000:]}")
            time.sleep(0.02)

    def _kill_other(self, kind: str) -> None:
        name = self._chance.choice([name for name in self._others if name.startswith(kind)])
        process = self._others[name]
        self._check_alive(name, process)
        process.kill()
        process.wait()
        self._history.add(Event("killed", who=name))
        self._start(name)

    def _check_alive(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            raise Stuck(f"{name} ended by itself with {process.returncode}: {self.broker_log[-3000:]}")

    # --- the end -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let the publishers finish what they began, then the workers; all processes but the broker end.

        Raises:
            Stuck: they do not come to an end.
        """
        deadline = time.monotonic() + DRAINED_WITHIN
        (self._folder / "enough").touch()
        self._await_end(("publisher", "library_publisher"), deadline)
        while any(left["backlog"] or left["ack_pending"] for left in self._consumers()):
            if time.monotonic() > deadline:
                raise Stuck(f"consumers do not come to their end: {self._consumers()}")
            time.sleep(0.1)
        (self._folder / "drained").touch()
        self._await_end(("worker", "library_worker"), deadline)
        self._await_retention()

    def _await_retention(self) -> None:
        """Until work queues and the like are empty, or should long have been: the checker will say."""
        queues = [one["filter"] for one in self.plan.policies.values() if "retention" in one]
        deadline = time.monotonic() + TIDY_WITHIN
        while time.monotonic() < deadline:
            pages = [self._wire.call("GET", f"/v1/messages?limit=1&topic={pattern}") for pattern in queues]
            if not any(self._expect(page, 200).json["messages"] for page in pages):
                return
            time.sleep(0.1)

    def _await_end(self, kind: tuple[str, ...], deadline: float) -> None:
        for name, process in list(self._others.items()):
            if not name.startswith(kind):
                continue
            try:
                code = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Stuck(f"{name} does not come to its end: {self.broker_log[-3000:]}") from None
            if code:
                raise Stuck(f"{name} ended with {code}: {self.broker_log[-3000:]}")
            del self._others[name]

    def _consumers(self) -> list[dict[str, Any]]:
        answer = self._expect(self._wire.call("GET", "/v1/consumers"), 200)
        return [one for one in answer.json["consumers"] if one["name"] in self.plan.consumers]

    def audit(self) -> None:
        """Write down all that the broker has: every message read to its end, and where the consumers are."""
        self._audits += 1
        for path in self._folder.glob("audit-*.jsonl"):
            path.rename(path.with_suffix(".old"))
        history = History(self._folder / f"audit-{self._audits}.jsonl")
        for message in self._listing():
            self._audit_message(history, message)
        for one in self._consumers():
            history.add(
                Event(
                    "consumer",
                    consumer=one["name"],
                    filter=one["filter"],
                    position=one["position"],
                    backlog=one["backlog"],
                    pending=one["ack_pending"],
                    most=one.get("max_deliver") if (one.get("max_deliver") or 0) > 0 else None,
                )
            )
        answer = self._expect(self._wire.call("GET", "/v1/messages?state=open"), 200)
        for message in answer.json["messages"]:
            history.add(Event("orphan", text=f"{message['id']} ({message['key']}) is still open"))

    def _audit_message(self, history: History, message: dict[str, Any]) -> None:
        dead: dict[str, Any] = message.get("dead") or {}
        event: dict[str, Any] = {
            "who": "audit",
            "id": message["id"],
            "seq": message["seq"],
            "key": dead.get("key", message["key"]),
            "topic": dead.get("topic", message["topic"]),
            "consumer": dead.get("consumer"),
            "dead": dead.get("message"),
        }
        answer = self._wire.call("GET", f"/v1/messages/{message['id']}/frames")
        if answer.status != 200:
            history.add(Event("unexpected", who="audit", text=f"{shown(answer)} for {message['id']}"))
            return
        try:
            data = unpack(answer.body)
        except FrameError as problem:
            history.add(Event("unreadable", who="audit", id=message["id"], text=str(problem)))
            return
        history.add(Event("found", sha256=sha256(data), size=len(data), **event))

    def _listing(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = 0
        while after is not None:
            page = self._expect(self._wire.call("GET", f"/v1/messages?limit={PAGE}&after={after}"), 200).json
            found += page["messages"]
            after = page["next"]
        return found

    def audit_files(self) -> None:
        """With the broker stopped: every frame file is a message's or an open upload's."""
        history = History(self._folder / f"audit-{self._audits}.jsonl")
        with sqlite3.connect(self.data / "meta.db") as database:
            known = {
                name for (name,) in database.execute("SELECT id FROM messages UNION SELECT id FROM uploads")
            }
            for (text,) in database.execute("PRAGMA integrity_check"):
                if text != "ok":
                    history.add(Event("orphan", text=f"meta.db: {text}"))
            rows = "SELECT seq FROM bodies WHERE seq NOT IN (SELECT seq FROM messages)"
            for (seq,) in database.execute(rows):
                history.add(Event("orphan", text=f"the body of {seq}, which is no message"))
        for path in sorted(self.data.rglob("*.frames")):
            if path.stem not in known:
                history.add(Event("orphan", text=f"{path.name} is the file of no message"))

    def violations(self) -> list[Violation]:
        """What the checker says of everything so far."""
        return check(self.events())

    def events(self) -> list[Event]:
        """Everything so far."""
        return read_events(sorted(self._folder.glob("*.jsonl")))

    def _expect(self, answer: Answer, *statuses: int) -> Answer:
        if answer.status not in statuses:
            raise Stuck(f"the broker answered {shown(answer)}: {self.broker_log[-3000:]}")
        return answer


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
