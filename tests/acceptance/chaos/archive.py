"""The archive of a chaos run: every model, update and record of the job, saved as soon as it is sealed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from crashing.payloads import unpack
from crashing.wire import Unreachable, Wire
from tensorbus.aggregator.records import Roster

from .training import JOB

PAUSE = 0.01
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A message: where its body is, and what the broker said of it."""

    path: Path
    info: Mapping[str, Any]

    @property
    def seq(self) -> int:
        """Its position in the broker's log."""
        return int(self.info["seq"])

    @property
    def number(self) -> int:
        """The round in its headers."""
        return int(self.info["headers"]["round"])

    @property
    def headers(self) -> Mapping[str, Any]:
        """Of the message."""
        return cast("Mapping[str, Any]", self.info["headers"])


class Archive:
    """Watches the broker from a thread. The file ``archived`` says up to which model nothing is missing.

    Attributes:
        models: by round. updates: by message id.
        rosters: of the rounds that were closed; the last attempt of each, and the record that it stands in.
        complete: up to this model nothing is missing. Mostly it is not the final one: a job that ends clears
            up at once.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.models: dict[int, Saved] = {}
        self.updates: dict[str, Saved] = {}
        self.rosters: dict[int, tuple[Roster, Saved]] = {}
        self.complete = 0
        self._folder = folder / "bodies"
        self._folder.mkdir()
        self._told = folder / "archived"
        self._told.write_text("0")
        self._wire = Wire(port)
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="archive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(PAUSE):
            try:
                self._look()
            except Unreachable:
                continue  # the broker was killed
            self._tell()

    def _look(self) -> None:
        answer = self._wire.call("GET", f"/v1/messages?topic=fl.{JOB}.>&state=sealed&limit=500")
        if answer.status != 200:
            return
        for info in answer.json["messages"]:
            if info["id"] not in self._seen:
                self._save(info)

    def _save(self, info: Mapping[str, Any]) -> None:
        body = self._wire.call("GET", f"/v1/messages/{info['id']}/frames")
        if body.status != 200:
            return  # it was deleted meanwhile
        path = self._folder / f"{info['id']}.frames"
        path.write_bytes(body.body)
        self._seen.add(info["id"])
        saved = Saved(path, info)
        match info["headers"].get("kind"):
            case "model":
                self.models[saved.number] = saved
            case "update":
                self.updates[info["id"]] = saved
            case "close":
                attempt = int(info["headers"]["attempt"])
                known = self.rosters.get(saved.number)
                if known is None or known[0].attempt < attempt:
                    self.rosters[saved.number] = Roster.parse(saved.number, attempt, unpack(body.body)), saved
            case _:
                pass  # a seed, or when a round was opened

    def _tell(self) -> None:
        while self._has(self.complete + 1):
            self.complete += 1
            self._told.write_text(str(self.complete))

    def _has(self, number: int) -> bool:
        if number not in self.models:
            return False
        if number == 1:
            return True
        return number - 1 in self.rosters and all(
            entry.message in self.updates for entry in self.rosters[number - 1][0].entries
        )
