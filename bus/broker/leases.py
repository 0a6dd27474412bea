"""Room that an upload has taken in the quotas that concern it. Pure.

Strategy. What is stored is looked up, what is on its way is counted here. While a message is being listed it
may be in both: the look-up may have seen its row already. So a refusal is in doubt as long as such a message
stands in an account, and is only believed when that is decided. The transaction that lists has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tensorbus.bus.quotas import over_bytes, over_messages
from tensorbus.bus.stores.values import Usage
from tensorbus.errors import QuotaExceeded

from .wakeup import Wakeup

_STEP = 1024 * 1024
"""Bytes by which the room of an upload of unknown size grows."""


@dataclass(slots=True)
class Account:
    """What one owner or topic has stored, as last looked up, and what is on its way, while anything is.

    Attributes:
        name: for errors.
        leases: of open uploads.
        reserved: bytes of these.
        max_bytes, max_messages: None is no limit.
        listing: how many of the leases are of messages that are being listed; ``listing_bytes`` of them.
        look_ups: how often ``stored`` was looked up.
        decided: notified when a message is not being listed any more.
    """

    name: str
    stored: Usage
    max_bytes: int | None
    max_messages: int | None
    leases: int = 0
    reserved: int = 0
    listing: int = 0
    listing_bytes: int = 0
    look_ups: int = 0
    decided: Wakeup = field(default_factory=Wakeup)

    def looked_up(self, stored: Usage, max_bytes: int | None, max_messages: int | None) -> None:
        """What is stored and allowed now."""
        self.stored, self.max_bytes, self.max_messages = stored, max_bytes, max_messages
        self.look_ups += 1

    def check(self, size: int, messages: int = 0) -> None:
        """Raise QuotaExceeded if there is no room for so much more, beside all that may be on its way."""
        self._check(size, messages, self.reserved, self.leases)

    def check_surely(self, size: int, messages: int = 0) -> None:
        """As ``check``, only if there is none whatever becomes of the messages that are being listed."""
        self._check(size, messages, self.reserved - self.listing_bytes, self.leases - self.listing)

    def in_doubt(self, size: int) -> bool:
        """Whether a message of ``size`` bytes would be refused, but perhaps for one that is counted twice."""
        try:
            self.check(size, messages=1)
        except QuotaExceeded:
            pass
        else:
            return False
        try:
            self.check_surely(size, messages=1)
        except QuotaExceeded:
            return False
        return True

    def _check(self, size: int, messages: int, reserved: int, leases: int) -> None:
        used = self.stored.bytes + reserved
        if self.max_bytes is not None and used + size > self.max_bytes:
            raise over_bytes(self.name, used, size, self.max_bytes)
        held = self.stored.messages + leases
        if self.max_messages is not None and held + messages > self.max_messages:
            raise over_messages(self.name, held, self.max_messages)


class Lease:
    """The room of one upload in its accounts."""

    def __init__(self, accounts: Sequence[Account], size: int | None) -> None:
        """Take room for ``size`` bytes if they are known. Raises QuotaExceeded."""
        for account in accounts:
            account.check(size or 0, messages=1)
        self._accounts = accounts
        self._reserved = size or 0
        self._seen: list[int] | None = None
        """While its message is being listed: the look-ups of its accounts before that."""
        for account in accounts:
            account.leases += 1
            account.reserved += self._reserved

    def cover(self, size: int) -> None:
        """Have room for ``size`` bytes in all. Raises QuotaExceeded."""
        more = size - self._reserved
        if more <= 0:
            return
        for account in self._accounts:
            account.check_surely(more)
        if more < _STEP and all(a.max_bytes is None or a.max_bytes > 16 * _STEP for a in self._accounts):
            more = _STEP
        self._reserved += more
        for account in self._accounts:
            account.reserved += more

    def listing(self) -> None:
        """Its message is being listed: from now on a look-up may count it as stored."""
        self._seen = [account.look_ups for account in self._accounts]
        for account in self._accounts:
            account.listing += 1
            account.listing_bytes += self._reserved

    def not_listed(self) -> None:
        """That did not succeed; the message is on its way as before."""
        if self._seen is None:
            return
        self._seen = None
        for account in self._accounts:
            account.listing -= 1
            account.listing_bytes -= self._reserved
            account.decided.notify()

    def end(self, stored: int | None) -> None:
        """The upload was given up, or has stored so many bytes."""
        seen = self._seen or [account.look_ups for account in self._accounts]
        self.not_listed()
        for account, before in zip(self._accounts, seen, strict=True):
            account.leases -= 1
            account.reserved -= self._reserved
            # A look-up since then may have counted it; once too few is put right by the next one.
            if stored is not None and account.look_ups == before:
                account.stored = Usage(account.stored.messages + 1, account.stored.bytes + stored)
        self._accounts = ()
