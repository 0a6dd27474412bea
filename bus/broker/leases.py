"""Room that an upload has taken in the quotas that concern it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensorbus.bus.quotas import over_bytes, over_messages
from tensorbus.bus.stores.base import Usage

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
    """

    name: str
    stored: Usage
    max_bytes: int | None
    max_messages: int | None
    leases: int = 0
    reserved: int = 0

    def check(self, size: int, messages: int = 0) -> None:
        """Raise QuotaExceeded if there is no room for so much more."""
        used = self.stored.bytes + self.reserved
        if self.max_bytes is not None and used + size > self.max_bytes:
            raise over_bytes(self.name, used, size, self.max_bytes)
        held = self.stored.messages + self.leases
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
        for account in accounts:
            account.leases += 1
            account.reserved += self._reserved

    def cover(self, size: int) -> None:
        """Have room for ``size`` bytes in all. Raises QuotaExceeded."""
        more = size - self._reserved
        if more <= 0:
            return
        for account in self._accounts:
            account.check(more)
        if more < _STEP and all(a.max_bytes is None or a.max_bytes > 16 * _STEP for a in self._accounts):
            more = _STEP
        self._reserved += more
        for account in self._accounts:
            account.reserved += more

    def end(self, stored: int | None) -> None:
        """The upload was given up, or has stored so many bytes."""
        for account in self._accounts:
            account.leases -= 1
            account.reserved -= self._reserved
            if stored is not None:
                account.stored = Usage(account.stored.messages + 1, account.stored.bytes + stored)
        self._accounts = ()
