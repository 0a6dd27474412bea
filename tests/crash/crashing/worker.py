"""A worker on a durable consumer that may be killed at any moment.

    python -m crashing.worker PORT FOLDER NAME SEED CONSUMER…

A thread for each consumer pulls, reads what it is handed to the last byte, and settles it, mostly by an ack.
What it sees is in FOLDER/NAME.jsonl. It stops by itself when there is a file FOLDER/drained.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .history import Event, History
from .payloads import FrameError, sha256, unpack
from .wire import Answer, Unreachable, Wire, explained, shown

RETRY = 0.05
POLL = 0.5
"""Seconds that a pull waits."""
SETTLED = {"ack": "acked", "term": "termed", "nak": "naked"}


class Worker:
    """One thread of a consumer."""

    def __init__(self, port: int, history: History, who: str, consumer: str, seed: str) -> None:
        self._wire = Wire(port)
        self._history = history
        self._who = who
        self._consumer = consumer
        self._chance = random.Random(seed)

    def run(self, drained: Path) -> None:
        """Pull and settle until there is nothing left."""
        while not drained.exists():
            try:
                self._turn()
            except Unreachable:
                time.sleep(RETRY)

    def _turn(self) -> None:
        asked = time.monotonic()
        wanted = {"max": self._chance.choice((1, 2, 8)), "wait": POLL}
        answer = self._wire.post(f"/v1/consumers/{self._consumer}/deliveries", wanted)
        if answer.status != 200:
            self._judge(answer, "pulling", 503)
            time.sleep(RETRY)
            return
        given: list[dict[str, Any]] = answer.json["deliveries"]
        for one in given:
            message = one["message"]
            self._note(
                "handed", one, asked=asked, key=message["key"], topic=message["topic"], seq=message["seq"]
            )
        for one in given:
            self._deal_with(one)

    def _deal_with(self, one: dict[str, Any]) -> None:
        message = one["message"]
        answer = self._wire.call("GET", f"/v1/messages/{message['id']}/frames")
        if answer.status == 200:
            try:
                data = unpack(answer.body)
            except FrameError as problem:
                self._note("unreadable", one, text=str(problem))
                return
            self._note(
                "read", one, key=message["key"], topic=message["topic"], sha256=sha256(data), size=len(data)
            )
        else:
            # Deleted by its publisher since it was handed over.
            self._judge(answer, f"reading {message['id']}", 404, 503)
            return
        chosen = self._chance.choices(("ack", "nak", "term", "nothing"), (85, 8, 3, 4))[0]
        if chosen == "nothing":
            return
        if self._chance.random() < 0.1:
            self._settle(one, "in_progress", {})
        self._settle(one, chosen, {"delay": 0.1} if chosen == "nak" else {})

    def _settle(self, one: dict[str, Any], how: str, document: dict[str, object]) -> None:
        if how in SETTLED:
            self._note(how, one)
        path = f"/v1/consumers/{self._consumer}/deliveries/{one['token']}/{how}"
        answer = self._wire.post(path, document)
        if answer.status == 204:
            if how in SETTLED:
                self._note(SETTLED[how], one)
        else:
            # 409: it took too long, and is with another worker; 404: the message was deleted meanwhile.
            self._judge(answer, f"{how} of {one['token']}", 404, 409, 503)

    def _note(self, what: str, one: dict[str, Any], **more: Any) -> None:
        document = {"who": self._who, "consumer": self._consumer, "id": one["message"]["id"]}
        self._history.add(Event(what, attempt=one["attempt"], **document, **more))  # pyright: ignore[reportArgumentType] # a What

    def _judge(self, answer: Answer, doing: str, *passing: int) -> None:
        if not explained(answer, *passing):
            self._history.add(Event("unexpected", who=self._who, text=f"{shown(answer)} while {doing}"))


def main() -> None:
    """Run all threads until there is nothing left."""
    port, folder, name, seed, *consumers = int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    history = History(folder / f"{name}.jsonl")
    threads = [
        threading.Thread(
            target=Worker(port, history, f"{name}-{number}", consumer, f"{seed}{name}{number}").run,
            args=(folder / "drained",),
        )
        for number, consumer in enumerate(consumers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
