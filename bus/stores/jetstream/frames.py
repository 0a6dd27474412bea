"""Pieces of frames as messages of a stream: the last message of a subject is the piece.

The stream keeps one message a subject, so that a piece that has grown takes the place of what it was. Each is
stored only in the place of the version that its writer knows. Pieces are read from whichever server has them;
what it has not (yet) is asked of the stream's leader.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from tensorbus.bus.stores.runs import Pieces
from tensorbus.bus.stores.values import Disk
from tensorbus.errors import StorageError, StorageFull

from .link import NOT_FOUND, WRONG_VERSION, ApiProblem, Link

_UNKNOWN = 1 << 60
"""Bytes that are free where no limit is set: only the servers know their disks."""


_EPOCH = "Tensorbus-Epoch"


@dataclass(frozen=True, slots=True)
class _Stored:
    data: bytes
    version: int
    epoch: int


class StreamPieces(Pieces):
    """Pieces in the stream ``NAME_frames``, under subjects ``NAME.f.RUN.NUMBER``."""

    def __init__(self, link: Link) -> None:
        settings = link.settings
        self._link = link
        self._stream = f"{settings.name}_frames"
        self._prefix = f"{settings.name}.f"
        self._sender = secrets.token_hex(6)
        self._sent = 0
        self._disk = Disk(_UNKNOWN, _UNKNOWN)

    async def open(self) -> None:
        """Make the stream if it is not there; on the link's loop. Raises StorageError."""
        settings = self._link.settings
        info = await self._link.make_stream(
            {
                "name": self._stream,
                "subjects": [f"{self._prefix}.*.*"],
                "storage": "file",
                "num_replicas": settings.replicas,
                "retention": "limits",
                "discard": "new",
                "max_msgs_per_subject": 1,
                "allow_direct": True,
                "allow_rollup_hdrs": False,
                "duplicate_window": int(settings.duplicate_window * 1e9),
                "metadata": {"tensorbus-piece": str(self.size)},
            }
        )
        found = info["config"].get("metadata", {}).get("tensorbus-piece")
        if not str(found).isdigit():
            raise StorageError(f"{settings}: the stream {self._stream} is not one of Tensorbus")
        self.size = int(found)

    # --- any thread ----------------------------------------------------------------------------------

    def put(self, run: str, number: int, data: bytes, before: int, epoch: int = 0) -> Future[int]:
        """Store a piece."""
        return self._link.call(self._put(run, number, data, before, epoch or self.term << 32))

    def get(self, run: str, number: int, size: int | None) -> Future[tuple[bytes, int] | None]:
        """A piece."""
        return self._link.call(self._get(run, number, size))

    def count(self, run: str) -> Future[int]:
        """How many pieces there are."""
        return self._link.call(self._count(run))

    def cut(self, run: str, number: int) -> Future[None]:
        """Remove the last pieces."""
        return self._link.call(self._cut(run, number))

    def clear(self, run: str) -> Future[None]:
        """Remove a run."""
        return self._link.call(self._purge(f"{self._prefix}.{run}.*"))

    def runs(self, seen: int) -> Future[tuple[Collection[str], int]]:
        """Runs, by name."""
        return self._link.call(self._list(seen))

    def age(self, run: str) -> Future[float]:
        """By the servers' clocks."""
        return self._link.call(self._age(run))

    def disk(self) -> Future[Disk]:
        """What the account may store, and has not."""
        return self._link.call(self._look())

    def check_room(self, size: int) -> None:
        """By what was known when it was last looked."""
        if self._disk.free < size:
            raise StorageFull(
                f"{self._link.settings}: {self._disk.free} bytes are free, {size} are needed; delete "
                "messages, or give the account or the stream more room"
            )

    # --- on the link's loop --------------------------------------------------------------------------

    def _subject(self, run: str, number: int) -> str:
        return f"{self._prefix}.{run}.{number}"

    async def _put(self, run: str, number: int, data: bytes, before: int, epoch: int) -> int:
        self._sent += 1
        headers = {
            "Nats-Msg-Id": f"{self._sender}.{self._sent}",
            "Nats-Expected-Last-Subject-Sequence": str(before),
            _EPOCH: str(epoch),
        }
        subject = self._subject(run, number)
        try:
            return await self._link.publish(subject, data, headers, self._link.settings.patience)
        except ApiProblem as problem:
            if problem.code not in WRONG_VERSION:
                raise StorageError(f"{self._link.settings}: {problem.text}") from problem
            there = await self._stored(subject)
            # It may be this one: sent, stored, and sent again since the answer was lost.
            if there is not None and there.data == data:
                return there.version
            if there is not None and there.epoch < epoch:
                return await self._put(run, number, data, there.version, epoch)
            raise StorageError(f"another broker goes on with the frames of {run}") from problem

    async def _get(self, run: str, number: int, size: int | None) -> tuple[bytes, int] | None:
        subject, patience = self._subject(run, number), self._link.settings.patience
        if size is not None:
            message = await self._link.ask(
                f"$JS.API.DIRECT.GET.{self._stream}.{subject}", b"", None, patience
            )
            headers = message.headers or {}
            if "Status" not in headers and len(message.data) == size:
                return message.data, int(headers["Nats-Sequence"])
        there = await self._stored(subject)
        return None if there is None else (there.data, there.version)

    async def _stored(self, subject: str) -> _Stored | None:
        """What the stream's leader has."""
        try:
            answer = await self._link.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}, self._link.settings.patience
            )
        except ApiProblem as problem:
            if problem.code in NOT_FOUND or problem.status == 404:
                return None
            raise StorageError(f"{self._link.settings}: {problem.text}") from problem
        message = answer["message"]
        found = re.search(rf"^{_EPOCH}: *(\d+)", base64.b64decode(message.get("hdrs", "")).decode(), re.M)
        return _Stored(
            base64.b64decode(message.get("data", "")),
            int(message["seq"]),
            0 if found is None else int(found[1]),
        )

    async def _numbers(self, run: str) -> set[int]:
        found: set[int] = set()
        while True:
            info = await self._api(
                f"STREAM.INFO.{self._stream}",
                {"subjects_filter": f"{self._prefix}.{run}.*", "offset": len(found)},
            )
            subjects = cast("dict[str, int]", info["state"].get("subjects") or {})
            found |= {int(subject.rpartition(".")[2]) for subject in subjects}
            if not subjects or len(found) >= int(info.get("total", 0)):
                return found

    async def _list(self, seen: int) -> tuple[Collection[str], int]:
        request: dict[str, object] = {"subjects_filter": f"{self._prefix}.*.*", "offset": seen}
        info = await self._api(f"STREAM.INFO.{self._stream}", request)
        subjects = cast("dict[str, int]", info["state"].get("subjects") or {})
        start = len(self._prefix) + 1
        return {subject[start:].partition(".")[0] for subject in subjects}, len(subjects)

    async def _age(self, run: str) -> float:
        last = f"{self._prefix}.{run}.*"
        try:
            found = await self._link.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": last}, self._link.settings.patience
            )
        except ApiProblem as problem:
            if problem.code in NOT_FOUND or problem.status == 404:
                return 0.0  # it has just been removed
            raise StorageError(f"{self._link.settings}: {problem.text}") from problem
        info = await self._api(f"STREAM.INFO.{self._stream}", None)
        stored, now = (_time(each) for each in (found["message"]["time"], info["ts"]))
        return (now - stored).total_seconds()

    async def _count(self, run: str) -> int:
        numbers = await self._numbers(run)
        count = 0
        while count in numbers:
            count += 1
        return count

    async def _cut(self, run: str, number: int) -> None:
        for there in sorted(await self._numbers(run)):
            if there >= number:
                await self._purge(self._subject(run, there))

    async def _purge(self, subject: str) -> None:
        await self._api(f"STREAM.PURGE.{self._stream}", {"filter": subject})

    async def _look(self) -> Disk:
        account = await self._api("INFO", None)
        stream = await self._api(f"STREAM.INFO.{self._stream}", None)
        limits: list[tuple[int, int]] = []
        allowed = int(account.get("limits", {}).get("max_storage", -1))
        if allowed > 0:
            limits.append((allowed - int(account.get("storage", 0)), allowed))
        allowed = int(stream["config"].get("max_bytes", -1))
        if allowed > 0:
            limits.append((allowed - int(stream["state"]["bytes"]), allowed))
        self._disk = Disk(*min(limits)) if limits else Disk(_UNKNOWN, _UNKNOWN)
        return self._disk

    async def _api(self, operation: str, request: dict[str, object] | None) -> dict[str, Any]:
        try:
            return await self._link.api(operation, request, self._link.settings.patience)
        except ApiProblem as problem:
            raise StorageError(f"{self._link.settings}: {problem.text}") from problem


def _time(text: str) -> datetime:
    """A server's, which has nanoseconds, or fewer digits."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}+00:00")
