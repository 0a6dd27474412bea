"""How long messages are kept: policies, and what removes messages by them.

Strategy. Nothing here stands in the way of a publish or an ack. A message that was stored or settled only
leaves a word; one task at a time takes all such words, asks the store about the topics concerned, and removes
what need not be kept in a few transactions, which share their fsyncs with whatever is published meanwhile.
Ages, and all that a crash or a change of a policy or of a consumer has left to do, are the sweep's. What must
never be exceeded (``discard`` new, and the quota of a token) is checked in the transaction that lists the
message; see ``Terms``.

No work grows with what is kept: counts are looked up, the oldest messages of a topic come first in its index,
and of what consumers have settled only messages up to the position of the last of them are looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import takewhile

from tensorbus.bus.clock import Clock
from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.policies import PolicyConfig, PolicyInfo, check_policy_name
from tensorbus.bus.stores.base import Store
from tensorbus.bus.stores.values import StoredPolicy, Usage
from tensorbus.bus.topics import matches, overlap
from tensorbus.errors import Conflict, LimitExceeded, NotFound

from .consumers import Consumers
from .workers import Workers

_BATCH = 500
"""Messages removed in one transaction, so that no publish waits long behind it."""
_REMEMBERED = 10_000
"""Topics whose policy is remembered."""


Sees = Callable[[str], bool]
"""Whether a caller may know of what has a filter: a refusal names nothing else."""


def everything(_filter: str) -> bool:
    """Nothing is hidden from who calls the broker in its own process."""
    return True


class Retention:
    """The policies of a broker, and their enforcement.

    Args:
        store: keeps policies and messages.
        consumers: whose interest counts.
        workers: carry removals to their end.
        clock: tells the time.
        limit: how many policies there may be.
    """

    def __init__(
        self, store: Store, consumers: Consumers, workers: Workers, clock: Clock, limit: int
    ) -> None:
        self._store = store
        self._consumers = consumers
        self._workers = workers
        self._clock = clock
        self._limit = limit
        self._policies: dict[str, StoredPolicy] = {}
        self._by_topic: dict[str, StoredPolicy | None] = {}
        self._changing = asyncio.Lock()
        self._grown: set[str] = set()
        self._settled: set[str] = set()
        self._working: asyncio.Task[None] | None = None
        self._closing = False
        self.removed = 0

    async def load(self) -> None:
        """Take up the policies that the store keeps."""
        self._policies = {policy.name: policy for policy in await self._store.policies()}

    async def close(self) -> None:
        """Finish what was begun; the rest is the next sweep's."""
        self._closing = True
        if self._working is not None:
            await asyncio.wait([self._working])

    # --- policies ------------------------------------------------------------------------------------

    async def put(
        self,
        name: str,
        config: PolicyConfig,
        check: Callable[[PolicyConfig], None] | None = None,
        sees: Sees = everything,
    ) -> tuple[PolicyInfo, bool]:
        """See ``Broker.put_policy``."""
        check_policy_name(name)
        config = PolicyConfig.from_json(config.to_json())
        async with self._changing:
            there = self._policies.get(name)
            if there is not None and check is not None:
                check(there.config)
            if there is None and len(self._policies) >= self._limit:
                raise LimitExceeded(f"there are {self._limit} policies, the broker's limit; delete one")
            self._check_apart(name, config, sees)
            if there is None or there.config != config:
                created = datetime.fromtimestamp(self._clock.wall(), UTC) if there is None else there.created
                await self._keep(StoredPolicy(name, config, created), sees)
        await self.enforce(name)
        return await self.info(name), there is None

    async def _keep(self, policy: StoredPolicy, sees: Sees) -> None:
        async with self._consumers.unchanging() as consumers:
            if policy.config.retention == "workqueue":
                _check_queue(policy.config.filter, [(c.name, c.config) for c in consumers], sees)
            await self._store.put_policy(policy)
            self._policies[policy.name] = policy
            self._by_topic.clear()

    async def delete(self, name: str) -> None:
        """See ``Broker.delete_policy``."""
        async with self._changing:
            self._get(name)
            await self._store.delete_policy(name)
            del self._policies[name]
            self._by_topic.clear()

    async def info(self, name: str) -> PolicyInfo:
        """One policy and what its topics hold. Raises NotFound."""
        return _described(self._get(name), await self._store.usage())

    async def all(self) -> list[PolicyInfo]:
        """Every policy, by name."""
        usage = await self._store.usage()
        return [_described(policy, usage) for _, policy in sorted(self._policies.items())]

    def policy(self, topic: str) -> StoredPolicy | None:
        """The one policy of a topic, if it has one."""
        if topic in self._by_topic:
            return self._by_topic[topic]
        found = next((p for p in self._policies.values() if matches(p.config.filter, topic)), None)
        if len(self._by_topic) >= _REMEMBERED:
            self._by_topic.clear()
        self._by_topic[topic] = found
        return found

    def _get(self, name: str) -> StoredPolicy:
        policy = self._policies.get(name)
        if policy is None:
            raise NotFound(f"there is no policy {name[:64]!r}")
        return policy

    def _check_apart(self, name: str, config: PolicyConfig, sees: Sees) -> None:
        """A topic has one policy, so that nobody has to guess which of two holds."""
        for other in self._policies.values():
            if other.name != name and overlap(other.config.filter, config.filter):
                filter_ = other.config.filter
                there = f"policy {other.name!r} for {filter_}" if sees(filter_) else "another policy"
                raise Conflict(
                    f"policy {name!r} for {config.filter} and {there} select topics in common; "
                    "a topic can have one policy only"
                )

    # --- work queues ---------------------------------------------------------------------------------

    def check_consumer(self, name: str, config: ConsumerConfig, sees: Sees = everything) -> None:
        """A topic that is a work queue has one consumer, which takes all of it.

        Raises:
            Conflict: the new consumer would be a second one, or would leave messages that nobody removes.
        """
        for policy in self._policies.values():
            if policy.config.retention == "workqueue" and overlap(policy.config.filter, config.filter):
                others = [(c.name, c.config) for c in self._consumers.values() if c.name != name]
                _check_queue(policy.config.filter, [*others, (name, config)], sees, only=name)

    # --- words ---------------------------------------------------------------------------------------

    def stored(self, message_id: str, topic: str) -> None:
        """A message was listed."""
        policy = self.policy(topic)
        if policy is None:
            return
        config = policy.config
        if config.retention == "interest":
            self._settled.add(message_id)
            self._work()
        if config.discard == "old" and (config.max_messages is not None or config.max_bytes is not None):
            self._grown.add(topic)
            self._work()

    def settled(self, message_ids: Iterable[str]) -> None:
        """A consumer has settled messages for good, and that is committed."""
        if any(policy.config.retention != "limits" for policy in self._policies.values()):
            self._settled.update(message_ids)
            self._work()

    def _work(self) -> None:
        if (self._working is None or self._working.done()) and not self._closing:
            self._working = self._workers.start(self._follow_up())

    async def _follow_up(self) -> None:
        """All that the words so far, and those that come meanwhile, make necessary."""
        while (self._grown or self._settled) and not self._closing:
            grown, self._grown = self._grown, set()
            settled, self._settled = list(self._settled), set[str]()
            for start in range(0, len(settled), _BATCH):
                await self._remove_settled(settled[start : start + _BATCH])
            for topic in grown:
                if (policy := self.policy(topic)) is not None:
                    await self._make_room(topic, policy.config)

    # --- enforcement ---------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Everything that any policy asks for now."""
        if self._policies:
            await self.enforce(None)

    async def enforce(self, name: str | None) -> None:
        """Everything that one policy, or any, asks for now."""
        ages = await self._store.first_sealed() if self._any_age() else {}
        for topic, usage in (await self._store.usage()).items():
            policy = self.policy(topic)
            if policy is None or (name is not None and policy.name != name):
                continue
            config = policy.config
            if config.max_age is not None:
                before = self._clock.wall() - config.max_age
                if ages.get(topic, before) < before:
                    await self._expire(topic, before)
            if config.discard == "old" and _is_over(config, usage.messages, usage.bytes):
                await self._make_room(topic, config)
            await self._release(topic, config)

    async def _expire(self, topic: str, before: float) -> None:
        """Remove messages sealed before a moment, oldest first."""
        old: list[str] | None = None
        while old is None or len(old) == _BATCH:
            found = await self._store.oldest(topic, _BATCH)
            old = [aged.id for aged in takewhile(lambda aged: aged.sealed < before, found)]
            await self._remove(old)

    def _any_age(self) -> bool:
        return any(policy.config.max_age is not None for policy in self._policies.values())

    async def _make_room(self, topic: str, config: PolicyConfig) -> None:
        """Remove the oldest messages of a topic until it is within its limits."""
        limits = (config.max_messages, config.max_bytes)
        while (
            await self._workers.finish(self._removal(self._store.make_room(topic, *limits, _BATCH))) == _BATCH
        ):
            pass

    async def _release(self, topic: str, config: PolicyConfig) -> None:
        """Remove what all consumers of a topic have settled."""
        interested = self._interested(topic, config)
        while interested is not None:
            found = await self._store.settled_by_all(topic, interested, _BATCH)
            await self._remove(found)
            if len(found) < _BATCH:
                return

    async def _remove_settled(self, message_ids: Sequence[str]) -> None:
        """Remove those of the messages that nobody waits for any more."""
        by_topic: dict[str, list[str]] = {}
        for message_id, topic in (await self._store.topics_of(message_ids)).items():
            by_topic.setdefault(topic, []).append(message_id)
        going: list[str] = []
        for topic, some in by_topic.items():
            policy = self.policy(topic)
            interested = None if policy is None else self._interested(topic, policy.config)
            if interested is not None:
                going += await self._store.settled_among(some, interested)
        await self._remove(going)

    def _interested(self, topic: str, config: PolicyConfig) -> list[str] | None:
        """The uids of those whose settlements let a message go; None if they do not."""
        if config.retention == "limits":
            return None
        found = [c.uid for c in self._consumers.values() if matches(c.config.filter, topic)]
        # A work queue keeps what nobody has taken yet; without any interest there is nothing to keep.
        return None if config.retention == "workqueue" and not found else found

    async def _remove(self, message_ids: Sequence[str]) -> None:
        if message_ids:
            await self._workers.finish(self._removal(self._store.remove(message_ids)))

    async def _removal(self, removing: Awaitable[Sequence[str]]) -> int:
        removed = await removing
        self.removed += len(removed)
        self._consumers.all_dropped(removed)
        return len(removed)


def _is_over(config: PolicyConfig, messages: int, size: int) -> bool:
    return (config.max_messages is not None and messages > config.max_messages) or (
        config.max_bytes is not None and size > config.max_bytes
    )


def _described(policy: StoredPolicy, usage: dict[str, Usage]) -> PolicyInfo:
    held = [use for topic, use in usage.items() if matches(policy.config.filter, topic)]
    return PolicyInfo(
        name=policy.name,
        config=policy.config,
        topics=len(held),
        messages=sum(use.messages for use in held),
        bytes=sum(use.bytes for use in held),
        created=policy.created,
    )


def _check_queue(
    queue: str, consumers: Iterable[tuple[str, ConsumerConfig]], sees: Sees, only: str | None = None
) -> None:
    """No two consumers share a topic of a work queue, and each takes all that is in it.

    Three filters that select topics in common two by two have one in common, so pairs are enough.
    """
    concerned = [(name, config) for name, config in consumers if overlap(queue, config.filter)]
    place_of = f"the work queue {queue}" if sees(queue) else "a work queue"
    for place, (name, config) in enumerate(concerned):
        if config.start != "all" and only in (None, name):
            raise Conflict(
                f"{_called(name, config, sees)} on {place_of} must start with all messages: "
                "what it leaves out would never be removed"
            )
        for other, other_config in concerned[:place]:
            if overlap(config.filter, other_config.filter) and (only is None or only in (name, other)):
                raise Conflict(
                    f"{_called(other, other_config, sees)} and {_called(name, config, sees)} select "
                    f"topics in common on {place_of}, where a message has one consumer; "
                    "let workers share one consumer"
                )


def _called(name: str, config: ConsumerConfig, sees: Sees) -> str:
    return f"consumer {name!r} ({config.filter})" if sees(config.filter) else "another consumer"
