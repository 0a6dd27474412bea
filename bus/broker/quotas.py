"""Room for what is on its way in: kept for it from its beginning, so that it is not refused in the end.

A quota is checked for good when a message is listed, in the same transaction (`Terms`). But nobody should
send gigabytes to learn then that there is no room for them, and what is on its way takes disk as well. So an
upload under a quota takes its room when it begins, or as it grows if its size is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tensorbus.bus.quotas import too_large
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import StoredPolicy, Terms

from .leases import Account, Lease
from .open_message import OpenMessage, Phase
from .retention import Retention


class Quotas:
    """The accounts of a broker, by owner and by topic; those that nothing open has a lease in are dropped."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self._store = store
        self._retention = retention
        self._accounts: dict[str, Account] = {}

    def terms(self, message: OpenMessage) -> Terms:
        """On which an open message may be listed."""
        terms = self._terms(message.topic, message.owner, message.quota)
        return terms if message.replaces is None else replace(terms, replaces=message.replaces)

    def plain_terms(self, topic: str, owner: str | None, quota: int | None) -> Terms | None:
        """On which messages may be listed that need no lease; None if they would need one."""
        if (owner is not None and quota is not None) or self._topic_limits(topic) != (None, None):
            return None
        return self._terms(topic, owner, quota)

    def _terms(self, topic: str, owner: str | None, quota: int | None) -> Terms:
        max_messages, max_bytes = self._topic_limits(topic)
        policy = self._retention.policy(topic)
        if policy is None:
            return Terms(owner=owner, owner_bytes=quota)
        return Terms(
            owner=owner,
            owner_bytes=quota,
            max_messages=max_messages,
            max_bytes=max_bytes,
            largest=policy.config.max_bytes,
            quota=_name(policy, topic),
        )

    def check_fits(self, topic: str, size: int | None) -> None:
        """Raise LimitExceeded if the topic would never hold ``size`` bytes."""
        policy = self._retention.policy(topic)
        largest = None if policy is None else policy.config.max_bytes
        if policy is not None and largest is not None and size is not None and size > largest:
            raise too_large(_name(policy, topic), size, largest)

    async def prepare(self, topic: str, owner: str | None, quota: int | None) -> list[Account]:
        """The accounts that an upload concerns, as they are now; none for an upload without quotas."""
        found: list[Account] = []
        if owner is not None and quota is not None:
            usage = await self._store.owner_usage(owner)
            found.append(Account(f"token {owner}", usage, quota, None))
        max_messages, max_bytes = self._topic_limits(topic)
        policy = self._retention.policy(topic)
        if policy is None:
            return found
        if max_messages is not None or max_bytes is not None:
            usage = await self._store.topic_usage(topic)
            found.append(Account(_name(policy, topic), usage, max_bytes, max_messages))
        return found

    def _topic_limits(self, topic: str) -> tuple[int | None, int | None]:
        """Messages and bytes beyond which a topic takes nothing."""
        policy = self._retention.policy(topic)
        if policy is None or policy.config.discard == "old":
            return None, None
        return policy.config.max_messages, policy.config.max_bytes

    def lease(self, accounts: Sequence[Account], size: int | None) -> Lease | None:
        """Take room for an upload in the accounts prepared for it. Raises QuotaExceeded."""
        self._accounts = {name: account for name, account in self._accounts.items() if account.leases}
        return Lease([self._shared(account) for account in accounts], size) if accounts else None

    async def look_up(self, message: OpenMessage) -> None:
        """Bring the accounts that an open message is in up to date."""
        for account in await self.prepare(message.topic, message.owner, message.quota):
            self._shared(account)

    async def decided(self, accounts: Sequence[Account], size: int | None) -> bool:
        """Whether `lease` can be believed. If not, what is in doubt was waited for: ``prepare`` once more."""
        for account in map(self._shared, accounts):
            if account.in_doubt(size or 0):
                await account.decided.wait(account.decided.version)
                return False
        return True

    def ended(self, message: OpenMessage) -> None:
        """A message was sealed or aborted."""
        sealed = message.phase is Phase.SEALED
        if message.lease is not None:
            message.lease.end(message.info.bytes if sealed else None)
            message.lease = None
        if sealed:
            self.stored(message.id, message.topic)

    def stored(self, message_id: str, topic: str) -> None:
        """A message was listed."""
        self._retention.stored(message_id, topic)

    def _shared(self, account: Account) -> Account:
        """The account that the other leases are in, brought up to date."""
        there = self._accounts.setdefault(account.name, account)
        there.looked_up(account.stored, account.max_bytes, account.max_messages)
        return there


def _name(policy: StoredPolicy, topic: str) -> str:
    return f"policy {policy.name} on topic {topic}"
