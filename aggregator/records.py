"""Records: what an aggregator has decided of its rounds, as tiny messages at the broker.

Strategy. A round's *open* record says when it began, so that a restart does not grant the deadline again. Its
*close* record is published before the result is computed: the roster of updates that the model is made of, in
the order of folding. Each has an idempotency key, so that the first decision stands, whoever makes it; an
aggregator that starts again, or takes over, goes by what it finds. So a closed round is made of the very same
updates, whatever arrives meanwhile. A roster of which an update turned out to be unusable is superseded by
another, with the next attempt's number.

Records of rounds that nobody needs any more are deleted, so that listing them costs nothing after 10,000
rounds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from tensorbus.bus.client import Client
from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessageInfo
from tensorbus.errors import InvalidRequest, JobError, NotFound, TensorbusError

from .control import Order, parse_order
from .deleting import delete_all
from .job import rounds_topic
from .rounds import Accepted, Before

log = logging.getLogger("tensorbus.aggregator")

MAX_ROSTER = 64 << 20
"""Bytes of a close record that are taken into memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An update in a roster: its message, who made it from the model of which round, what it counts for."""

    message: str
    site: str
    number: int
    weight: float


@dataclass(frozen=True, slots=True)
class Roster:
    """What a round was closed with.

    Attributes:
        attempt: from 1; the last one of a round holds.
        entries: in the order of folding.
        left: sites that take part in no further round.
    """

    number: int
    attempt: int
    entries: tuple[Entry, ...]
    left: tuple[str, ...] = ()

    @classmethod
    def of(cls, number: int, attempt: int, accepted: Iterable[Accepted], left: Iterable[str]) -> Roster:
        """The roster of a round that was just closed."""
        entries = (Entry(a.message, a.headers.site, a.headers.number, a.weight) for a in accepted)
        return cls(number, attempt, tuple(entries), tuple(sorted(left)))

    def to_bytes(self) -> bytes:
        """JSON, which floats survive to the last bit."""
        entries = [[entry.message, entry.site, entry.number, entry.weight] for entry in self.entries]
        return json.dumps({"updates": entries, "left": self.left}, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, number: int, attempt: int, body: bytes) -> Roster:
        """Raises InvalidRequest: it is no roster."""
        try:
            got = Fields(json.loads(body), "roster")
            names = [Fields({"site": site}, "roster").text("site") for site in got.array("left")]
            entries = [_entry(entry) for entry in got.array("updates")]
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(f"the roster of round {number} cannot be read: {error}") from None
        return cls(number, attempt, tuple(entries), tuple(names))


def _entry(value: object) -> Entry:
    got = Fields({"entry": value}, "roster").array("entry")
    message, site, number, weight = got
    fields = Fields({"message": message, "site": site, "number": number, "weight": weight}, "roster")
    return Entry(
        fields.text("message"),
        fields.text("site"),
        fields.integer("number"),
        fields.number("weight", 0, 1e300),
    )


@dataclass(slots=True)
class Ledger:
    """The records that lie at the broker.

    Attributes:
        opened: when each round began, in seconds since the epoch.
        rosters: of the rounds that were closed; the last attempt of each.
        orders: to pause, resume or cancel, oldest first.
    """

    opened: dict[int, float] = field(default_factory=lambda: {})
    rosters: dict[int, Roster] = field(default_factory=lambda: {})
    orders: list[Order] = field(default_factory=lambda: [])

    def before(self, number: int) -> Before:
        """What the rounds before ``number`` leave to it."""
        entries = [e for n, roster in self.rosters.items() if n < number for e in roster.entries]
        last = self.rosters.get(number - 1)
        left = frozenset(last.left) if last is not None else frozenset[str]()
        return Before(
            frozenset(entry.message for entry in entries),
            frozenset((entry.site, entry.number) for entry in entries),
            left | {entry.site for entry in (() if last is None else last.entries)},
            left,
        )


class Records:
    """Those of one job."""

    def __init__(self, bus: Client, job: str) -> None:
        self._bus = bus
        self._job = job
        self.ledger = Ledger()

    async def read(self) -> Ledger:
        """All that there are; what makes no sense is passed over."""
        self.ledger = Ledger()
        async for info in self._bus.messages(rounds_topic(self._job)):
            try:
                await self._take(info)
            except (TensorbusError, ValueError) as error:
                if not isinstance(error, (InvalidRequest, NotFound)):
                    raise
                log.warning("record %s on %s is passed over: %s", info.id, info.topic, error)
        return self.ledger

    async def orders(self) -> list[Order]:
        """Those that lie at the broker at this moment, oldest first."""
        orders: list[Order] = []
        async for info in self._bus.messages(rounds_topic(self._job)):
            if info.headers.get("kind") == "order" and info.headers.get("job") == self._job:
                try:
                    orders.append(parse_order(info))
                except InvalidRequest as error:
                    log.warning("order %s is passed over: %s", info.id, error)
        return orders

    async def open(self, number: int, at: float) -> float:
        """Round ``number`` begins ``at``, in seconds since the epoch; or when it did, if it has already."""
        known = self.ledger.opened.get(number)
        if known is None:
            headers = {"kind": "open", "job": self._job, "round": number, "at": at}
            receipt = await self._bus.publish(
                rounds_topic(self._job), b"", headers=headers, key=f"{self._job}/open-{number}"
            )
            known = at
            if receipt.duplicate:
                known = _at((await self._bus.message(receipt.id)).headers)
            self.ledger.opened[number] = known
        return known

    async def close(self, roster: Roster) -> Roster:
        """The decision of what a round consists of: this roster, or the one that stands already.

        Raises:
            JobError: it was decided, and the record deleted by somebody.
        """
        headers = {
            "kind": "close",
            "job": self._job,
            "round": roster.number,
            "attempt": roster.attempt,
            "updates": len(roster.entries),
        }
        key = f"{self._job}/close-{roster.number}" + (f"/{roster.attempt}" if roster.attempt > 1 else "")
        receipt = await self._bus.publish(
            rounds_topic(self._job), roster.to_bytes(), headers=headers, key=key
        )
        if receipt.duplicate:
            try:
                roster = await self._roster(await self._bus.message(receipt.id))
            except NotFound:
                raise JobError(
                    f"round {roster.number} of job {self._job!r} was closed, and the record of it was deleted"
                ) from None
        self.ledger.rosters[roster.number] = roster
        return roster

    async def clean_up(self, below: int | None) -> None:
        """Delete the records of rounds before ``below``, all for None. Of the orders, the last one stays."""
        old: list[str] = []
        orders: list[str] = []
        async for info in self._bus.messages(rounds_topic(self._job)):
            number = info.headers.get("round")
            if info.headers.get("kind") == "order" and below is not None:
                orders.append(info.id)
            elif below is None or not isinstance(number, int):
                old.append(info.id)
            elif number < below:
                old.append(info.id)
                old += orders[:-1]  # they were given before that round's successor began
                orders = orders[-1:]
        await delete_all(self._bus, old)
        if below is not None:
            for kept in (self.ledger.opened, self.ledger.rosters):
                for number in [number for number in kept if number < below]:
                    del kept[number]

    async def _take(self, info: MessageInfo) -> None:
        headers = info.headers
        if headers.get("job") != self._job:
            raise InvalidRequest(f"it is of job {headers.get('job')!r:.80}")
        match headers.get("kind"):
            case "open":
                self.ledger.opened[_number(headers, "round")] = _at(headers)
            case "close":
                roster = await self._roster(info)
                known = self.ledger.rosters.get(roster.number)
                if known is None or known.attempt < roster.attempt:
                    self.ledger.rosters[roster.number] = roster
            case "order":
                self.ledger.orders.append(parse_order(info))
            case kind:
                raise InvalidRequest(f"its kind is {kind!r:.80}")

    async def _roster(self, info: MessageInfo) -> Roster:
        if (info.original_bytes or 0) > MAX_ROSTER or info.container != "bytes":
            raise InvalidRequest(f"a roster is a byte string of up to {MAX_ROSTER} bytes")
        body = await (await self._bus.fetch(info.id)).load()
        number, attempt = _number(info.headers, "round"), _number(info.headers, "attempt")
        return Roster.parse(number, attempt, bytes(cast(bytes, body)))


def _number(headers: Mapping[str, object], name: str) -> int:
    return Fields(headers, "record").integer(name, at_least=1)


def _at(headers: Mapping[str, object]) -> float:
    return Fields(headers, "record").number("at", 0, 1e12)
