"""A publisher that may be killed at any moment, and goes on where it was when it is started again.

    python -m crashing.publisher PORT FOLDER NAME SEED

Each of its threads publishes one message after the other, small ones in one request, larger ones by tus in
pieces, and deletes its large ones again after a while. What it sees is in FOLDER/NAME.jsonl. It stops by
itself, with everything acknowledged that it had begun, when there is a file FOLDER/enough.

Topics come from the environment variable CRASHING_TOPICS, in turn. Where one has no room for another message,
that is given up, and an older one is deleted.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .history import Event, History, read_events
from .payloads import KIB, body, payload, sha256
from .wire import Answer, Unreachable, Wire, explained, shown

THREADS = 2
PAUSE = 0.06
"""Mean of the seconds between two messages of a thread."""
KEPT = 6
"""Large messages that a thread leaves in the store before it deletes the oldest."""
LARGE = 200 * KIB
RETRY = 0.05
FRAMES = "application/vnd.tensorbus.frames"
TUS = {"Tus-Resumable": "1.0.0"}
TOPICS = os.environ.get("CRASHING_TOPICS", "crash.t0,crash.t1,crash.t2").split(",")
LIMITED = "full."
"""Topics with this beginning refuse what is too much."""


class Refused(Exception):
    """There is no room in the topic."""


class Publisher:
    """One thread: a sequence of messages ``NAME-THREAD-NUMBER``."""

    def __init__(self, port: int, history: History, who: str, past: list[Event], seed: str) -> None:
        self._wire = Wire(port)
        self._history = history
        self._who = who
        self._chance = random.Random(seed)
        begun = [event for event in past if event.what == "publish" and event.who == who]
        stored = {event.key for event in past if event.what in ("stored", "refused") and event.who == who}
        deleted = {event.id for event in past if event.what == "deleted" and event.who == who}
        self._number = len(begun)
        self._pending = [event for event in begun if event.key not in stored]
        self._uploads = {event.key: event.text for event in past if event.what == "created"}
        self._large = deque(
            event.id
            for event in past
            if event.what == "stored"
            and event.who == who
            and event.id not in deleted
            and ((event.size or 0) >= LARGE or (event.topic or "").startswith(LIMITED))
            and event.id
        )

    def run(self, enough: Path) -> None:
        """Publish until it is enough."""
        for event in self._pending:
            self._insist(event.topic or "", event.key or "", payload(event.key or ""))
        while not enough.exists():
            number = self._number
            self._number += 1
            key, topic = f"{self._who}-{number}", TOPICS[number % len(TOPICS)]
            data = payload(key)
            self._note(Event("publish", key=key, topic=topic, sha256=sha256(data), size=len(data)))
            self._insist(topic, key, data)
            while len(self._large) > KEPT:
                self._delete(self._large.popleft())
            time.sleep(self._chance.expovariate(1 / PAUSE))

    def _note(self, event: Event) -> None:
        self._history.add(replace(event, who=self._who))

    def _insist(self, topic: str, key: str, data: bytes) -> None:
        """Publish under ``key`` until the broker says that it is stored."""
        by_tus = len(data) > LARGE // 4 and random.Random(key + "way").random() < 0.6
        location = self._uploads.get(key)
        while True:
            try:
                if by_tus:
                    location, receipt = self._upload(topic, key, body(data), location)
                else:
                    receipt = self._post(topic, key, data)
            except Unreachable:
                time.sleep(RETRY)
                continue
            except Refused:
                self._note(Event("refused", key=key, topic=topic))
                if self._large:
                    self._delete(self._large.popleft())
                return
            if receipt is not None:
                break
            time.sleep(RETRY)
        self._note(
            Event("stored", key=key, topic=topic, id=receipt["id"], seq=receipt["seq"], size=len(data))
        )
        if len(data) >= LARGE or topic.startswith(LIMITED):
            self._large.append(receipt["id"])

    def _post(self, topic: str, key: str, data: bytes) -> dict[str, Any] | None:
        """One request; the receipt, or None if it is to be tried again."""
        whole = self._chance.random() < 0.5
        answer = self._wire.call(
            "POST",
            f"/v1/topics/{topic}/messages",
            data if whole else self._slowly(data),
            {
                "Idempotency-Key": key,
                "Content-Length": str(len(data)),
                "Content-Type": "application/octet-stream",
            },
        )
        if answer.status in (200, 201):
            return answer.json
        self._check_room(answer, topic)
        self._judge(answer, f"publishing {key}", 410, 503)
        return None

    @staticmethod
    def _check_room(answer: Answer, topic: str) -> None:
        if answer.status == 507 and topic.startswith(LIMITED):
            raise Refused

    def _slowly(self, data: bytes) -> Iterator[bytes]:
        """In pieces, so that there is time to be killed in between."""
        step = self._chance.choice((16, 64, 256)) * KIB
        for start in range(0, len(data), step):
            yield data[start : start + step]
            if self._chance.random() < 0.5:
                time.sleep(0.006)

    def _upload(
        self, topic: str, key: str, data: bytes, location: str | None
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Create or take up an upload and send the rest: its location, and the receipt if that was all."""
        if location is None:
            fields = TUS | {"Upload-Length": str(len(data)), "Idempotency-Key": key}
            answer = self._wire.call("POST", f"/v1/topics/{topic}/uploads", b"", fields)
            if answer.status not in (200, 201):
                self._check_room(answer, topic)
                self._judge(answer, f"creating an upload of {key}", 409, 410, 503)
                return None, None
            if (stored := answer.headers.get("tensorbus-receipt")) is not None:
                return None, json.loads(stored)  # and it may have been consumed, and be gone, since then
            location = answer.headers["location"]
            self._note(Event("created", key=key, topic=topic, text=location))
        path = location[location.index("/v1/") :]
        answer = self._wire.call("HEAD", path, headers=TUS)
        if answer.status not in (200, 204):
            self._judge(answer, f"asking for the offset of {key}", 404, 410, 503)
            return None, None
        offset = int(answer.headers["upload-offset"])
        if offset:
            self._note(Event("resumed", key=key, topic=topic, position=offset, size=len(data)))
        while offset < len(data):
            end = min(len(data), offset + self._chance.choice((100, 700, 5000)) * KIB)
            fields = TUS | {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(end - offset),
            }
            answer = self._wire.call("PATCH", path, self._slowly(data[offset:end]), fields)
            if answer.status == 507 and topic.startswith(LIMITED):
                self._give_up(path)
            if answer.status != 204:
                self._judge(answer, f"sending bytes {offset} to {end} of {key}", 404, 409, 410, 503)
                return (None if answer.status in (404, 410) else location), None
            offset = int(answer.headers["upload-offset"])
        answer = self._wire.call("GET", f"/v1/topics/{topic}/receipt?key={key}")
        if answer.status == 200:
            return location, answer.json
        self._judge(answer, f"asking for the receipt of {key}", 503)
        return None, None

    def _give_up(self, path: str) -> None:
        """There is no room for an upload. Raises Refused, once nothing is left of it."""
        while True:
            try:
                answer = self._wire.call("DELETE", path, headers=TUS)
            except Unreachable:
                time.sleep(RETRY)
                continue
            if answer.status in (204, 404, 410):
                raise Refused
            self._judge(answer, f"giving up {path}", 503)
            time.sleep(RETRY)

    def _delete(self, name: str) -> None:
        self._note(Event("delete", id=name))
        while True:
            try:
                answer = self._wire.call("DELETE", f"/v1/messages/{name}")
            except Unreachable:
                time.sleep(RETRY)
                continue
            if answer.status in (204, 404):
                self._note(Event("deleted", id=name))
                return
            self._judge(answer, f"deleting {name}", 503)
            time.sleep(RETRY)

    def _judge(self, answer: Answer, doing: str, *passing: int) -> None:
        """Note an answer that should not be; ``passing`` ones come of kills."""
        if not explained(answer, *passing):
            self._note(Event("unexpected", text=f"{shown(answer)} while {doing}"))


def main() -> None:
    """Run all threads until it is enough."""
    port, folder, name, seed = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    path = folder / f"{name}.jsonl"
    past = read_events([path]) if path.exists() else []
    history = History(path)
    threads: list[threading.Thread] = []
    for number in range(THREADS):
        who = f"{name}-{number}"
        one = Publisher(port, history, who, past, f"{seed}{who}{len(past)}")
        threads.append(threading.Thread(target=one.run, args=(folder / "enough",)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
