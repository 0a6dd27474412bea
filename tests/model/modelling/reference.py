"""The reference: a broker that forgets nothing, because nothing can happen to it.

Written from what the documentation promises, not from the broker's code: there are no positions, no rows and
no files here. Each method is one operation, at once and as a whole; errors are the broker's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.topics import matches, overlap
from tensorbus.errors import AlreadySettled, Conflict, NotFound

from .driven import EXPIRY, body_of
from .uploads import Account, Open, Uploads, check_stored


@dataclass
class Message:
    """A stored message; ``deaths`` names the consumers that could not deal with it, first to last."""

    id: str
    seq: int
    topic: str
    key: str | None
    content: bytes
    sealed: float
    deaths: tuple[str, ...] = ()
    died: Message | None = None
    """What it is the dead letter of."""

    @property
    def size(self) -> int:
        """Bytes of its frames."""
        return len(body_of(self.content))


@dataclass
class Handed:
    """A delivery that is not settled."""

    attempt: int
    due: float
    held: bool = True
    unread: int = 0

    @property
    def tries(self) -> int:
        """Attempts that count."""
        return self.attempt - self.unread


@dataclass
class Consumer:
    """A durable consumer: what it has in hand, and what it will never be handed again."""

    name: str
    config: ConsumerConfig
    after: int
    """The seq beyond which its messages begin."""
    used: float = 0.0
    """When somebody last asked something of it."""
    handed: dict[str, Handed] = field(default_factory=dict[str, Handed])
    done: set[str] = field(default_factory=set[str])

    def takes(self, message: Message) -> bool:
        """Whether a message is, or was, for it."""
        return (
            message.seq > self.after
            and matches(self.config.filter, message.topic)
            and self.name not in message.deaths
        )

    def spent(self, handed: Handed) -> bool:
        """Whether the attempts of a delivery are used up."""
        return self.config.max_deliver is not None and handed.tries >= self.config.max_deliver


@dataclass
class Key:
    """An idempotency key that was stored."""

    id: str
    seq: int
    stored: float


class Reference:
    """A broker in memory. ``now`` is its clock; ids and seqs come from the broker that it is compared with.

    Args:
        window: seconds for which the key of a message that is gone is remembered.
    """

    def __init__(self, window: float) -> None:
        self.now = 0.0
        self.messages: dict[str, Message] = {}
        self.keys: dict[tuple[str, str], Key] = {}
        self.consumers: dict[str, Consumer] = {}
        self.policies: dict[str, PolicyConfig] = {}
        self.uploads = Uploads()
        self.to_bury: list[tuple[str, Message, str]] = []
        """Dead letters that must be there now, of which the id and the seq are not known yet: whose, of what,
        and on which topic."""
        self._window = window

    # --- messages ------------------------------------------------------------------------------------

    def check_publish(self, topic: str, key: str | None, size: int) -> Key | None:
        """The key's first storing, if there was one; else an upload of this key gives way.

        Raises QuotaExceeded, LimitExceeded.
        """
        if key is not None and (topic, key) in self.keys:
            return self.keys[topic, key]
        if (before := self.uploads.of_key(topic, key)) is not None:
            self.give_up(before.id)
        self._check_room(topic, size)
        return None

    def _check_room(self, topic: str, size: int) -> Account | None:
        sizes = [message.size for message in self._in(topic)]
        return self.uploads.check_room(self._named_policy(topic), topic, sizes, size)

    def published(self, message: Message) -> None:
        """The broker has stored it."""
        assert message.id not in self.messages
        assert all(message.seq > other.seq for other in self.messages.values()), "seqs go up"
        self.messages[message.id] = message
        if message.key is not None:
            known = self.keys.setdefault(
                (message.topic, message.key), Key(message.id, message.seq, message.sealed)
            )
            assert known.id == message.id, "a key was stored twice"

    # --- uploads -------------------------------------------------------------------------------------

    def check_create(self, topic: str, key: str | None, size: int, source: str | None) -> Key | Open | None:
        """The key's first storing, or the upload that is the same. Raises as ``check_publish``."""
        before = self.uploads.of_key(topic, key)
        if before is not None and None is not before.source == source and len(before.body) == size:
            return before
        return self.check_publish(topic, key, size)

    def created(self, upload_id: str, topic: str, key: str | None, body: bytes, source: str | None) -> None:
        """The broker has made an upload that ``check_create`` allows."""
        room, expires = self._check_room(topic, len(body)), self.now + EXPIRY
        self.uploads.open[upload_id] = Open(upload_id, topic, key, body, source, expires, expires, room)

    def check_seal(self, upload: Open) -> None:
        """Whether an upload may become a message. Raises QuotaExceeded, LimitExceeded."""
        sizes = [message.size for message in self._in(upload.topic)]
        check_stored(self._policy(upload.topic), sizes, len(upload.body))

    def sealed(self, upload_id: str) -> None:
        """An upload is a message now; who was handed it goes on with that."""
        del self.uploads.open[upload_id]

    def give_up(self, upload_id: str) -> None:
        """An upload is gone, and with it the deliveries of it. Raises NotFound."""
        del self.uploads.open[self.uploads.get(upload_id).id]
        self._forget([upload_id])

    # --- messages go ---------------------------------------------------------------------------------

    def delete(self, message_id: str) -> None:
        """Raises NotFound."""
        if message_id in self.uploads.open:
            self.give_up(message_id)
            return
        if message_id not in self.messages:
            raise NotFound(message_id)
        self._remove([message_id])

    def _remove(self, ids: list[str]) -> None:
        for message_id in ids:
            del self.messages[message_id]
        self._forget(ids)

    def _forget(self, ids: Iterable[str]) -> None:
        for message_id in ids:
            for consumer in self.consumers.values():
                consumer.handed.pop(message_id, None)
                consumer.done.discard(message_id)

    def _in(self, topic: str) -> list[Message]:
        found = [message for message in self.messages.values() if message.topic == topic]
        return sorted(found, key=lambda message: message.seq)

    # --- consumers -----------------------------------------------------------------------------------

    def ensure(self, name: str, config: ConsumerConfig, last: int) -> None:
        """``last`` is the highest seq ever given. Raises Conflict."""
        there = self.consumers.get(name)
        if there is not None:
            if there.config != config:
                raise Conflict(name)
            return
        for policy in self.policies.values():
            if policy.retention == "workqueue":
                self._check_queue(
                    policy, [(c.name, c.config) for c in self.consumers.values()] + [(name, config)]
                )
        after = {"all": 0, "new": last}.get(str(config.start), 0)
        if isinstance(config.start, int):
            after = config.start - 1
        self.consumers[name] = Consumer(name, config, after, self.now)

    def forget(self, name: str) -> None:
        """Raises NotFound."""
        del self.consumers[self._consumer(name).name]

    def _consumer(self, name: str) -> Consumer:
        if name not in self.consumers:
            raise NotFound(name)
        return self.consumers[name]

    def _used(self, name: str) -> Consumer:
        consumer = self._consumer(name)
        consumer.used = self.now
        return consumer

    def pull(self, name: str, limit: int, follow: bool) -> list[tuple[str, int]]:
        """Ids and attempts, in the order in which they are handed over. Raises NotFound."""
        consumer = self._used(name)
        self._bury_spent(consumer)
        due = [name for name, handed in consumer.handed.items() if handed.due <= self.now]
        again = sorted(
            (self.messages[name] for name in due if name in self.messages), key=lambda message: message.seq
        )
        again += [self.uploads.open[name] for name in due if follow and name in self.uploads.open]
        again = again[:limit]
        room = min(limit - len(again), consumer.config.max_ack_pending - len(consumer.handed))
        new = [
            message
            for message in sorted(self.messages.values(), key=lambda message: message.seq)
            if consumer.takes(message)
            and message.id not in consumer.handed
            and message.id not in consumer.done
        ][: max(0, room)]
        chosen = [
            *(m for m in again if m.id in self.messages),
            *(m for m in again if m.id in self.uploads.open),
        ]
        for message in new:
            consumer.handed[message.id] = Handed(0, 0.0)
        followed: list[Open] = []
        if follow:
            room = min(limit - len(chosen) - len(new), consumer.config.max_ack_pending - len(consumer.handed))
            followed = [
                upload
                for upload in self.uploads.open.values()
                if upload.known
                and matches(consumer.config.filter, upload.topic)
                and upload.id not in consumer.handed
                and upload.id not in consumer.done
            ][: max(0, room)]
            for upload in followed:
                consumer.handed[upload.id] = Handed(0, 0.0)
        given: list[tuple[str, int]] = []
        for message in (*chosen, *new, *followed):
            handed = consumer.handed[message.id]
            handed.attempt += 1
            handed.held = True
            handed.due = self.now + consumer.config.wait(handed.tries)
            given.append((message.id, handed.tries))
        return given

    def _held(self, name: str, message_id: str, attempt: int) -> tuple[Consumer, Handed]:
        consumer = self._used(name)
        handed = consumer.handed.get(message_id)
        if handed is None or attempt < handed.attempt or not handed.held:
            raise AlreadySettled(message_id)
        return consumer, handed

    def ack(self, name: str, message_id: str, attempt: int) -> None:
        """Raises NotFound, AlreadySettled."""
        consumer, _ = self._held(name, message_id, attempt)
        if message_id in self.uploads.open:
            raise Conflict(message_id)
        self._settle(consumer, message_id)

    def _settle(self, consumer: Consumer, message_id: str) -> None:
        del consumer.handed[message_id]
        consumer.done.add(message_id)

    def nak(self, name: str, message_id: str, attempt: int, delay: float, unread: bool) -> None:
        """Raises NotFound, AlreadySettled."""
        consumer, handed = self._held(name, message_id, attempt)
        handed.held = False
        handed.due = self.now + delay
        handed.unread += unread
        if consumer.spent(handed) and message_id in self.messages:
            handed.due = self.now
        self._bury_spent(consumer)

    def term(self, name: str, message_id: str, attempt: int) -> None:
        """Raises NotFound, AlreadySettled."""
        consumer, _ = self._held(name, message_id, attempt)
        if message_id in self.messages:
            self._bury(consumer, message_id)
        else:
            self._settle(consumer, message_id)

    def in_progress(self, name: str, message_id: str, attempt: int) -> None:
        """Raises NotFound, AlreadySettled."""
        consumer, handed = self._held(name, message_id, attempt)
        handed.due = self.now + consumer.config.wait(handed.tries)

    # --- dead letters --------------------------------------------------------------------------------

    def _bury_spent(self, consumer: Consumer) -> None:
        spent = [
            message_id
            for message_id, handed in consumer.handed.items()
            if handed.due <= self.now and consumer.spent(handed) and message_id in self.messages
        ]
        for message_id in spent:
            self._bury(consumer, message_id)

    def _bury(self, consumer: Consumer, message_id: str) -> None:
        topic = consumer.config.dead_letter or f"dead.{consumer.name}"
        self.to_bury.append((consumer.name, self.messages[message_id], topic))
        self._settle(consumer, message_id)

    def replay_check(self, message_id: str, everyone: bool) -> Message:
        """The letter. Raises NotFound, Conflict."""
        if message_id not in self.messages:
            raise NotFound(message_id)
        letter = self.messages[message_id]
        if letter.died is None:
            raise Conflict(message_id)
        if not everyone:
            consumer = self.consumers.get(letter.deaths[-1])
            if consumer is None or not matches(consumer.config.filter, letter.died.topic):
                raise NotFound(letter.deaths[-1])
        return letter

    def replayed(self, letter: Message, again: Message, everyone: bool) -> None:
        """The broker has made the letter a message again."""
        self._remove([letter.id])
        self.messages[again.id] = again
        for consumer in self.consumers.values():
            if not everyone and consumer.name != letter.deaths[-1] and consumer.takes(again):
                consumer.done.add(again.id)

    # --- policies ------------------------------------------------------------------------------------

    def put_policy(self, name: str, config: PolicyConfig) -> None:
        """Raises Conflict."""
        for other, there in self.policies.items():
            if other != name and overlap(there.filter, config.filter):
                raise Conflict(name)
        if config.retention == "workqueue" and self.policies.get(name) != config:
            self._check_queue(config, [(c.name, c.config) for c in self.consumers.values()])
        self.policies[name] = config

    def _check_queue(self, policy: PolicyConfig, consumers: list[tuple[str, ConsumerConfig]]) -> None:
        concerned = [config for _, config in consumers if overlap(policy.filter, config.filter)]
        for place, config in enumerate(concerned):
            if config.start != "all" or any(
                overlap(config.filter, other.filter) for other in concerned[:place]
            ):
                raise Conflict(policy.filter)

    def delete_policy(self, name: str) -> None:
        """Raises NotFound."""
        if name not in self.policies:
            raise NotFound(name)
        del self.policies[name]

    def _named_policy(self, topic: str) -> tuple[str, PolicyConfig] | None:
        return next((each for each in self.policies.items() if matches(each[1].filter, topic)), None)

    def _policy(self, topic: str) -> PolicyConfig | None:
        found = self._named_policy(topic)
        return None if found is None else found[1]

    # --- time ----------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """All that is due is done."""
        for consumer in list(self.consumers.values()):
            self._bury_spent(consumer)
            threshold = consumer.config.inactive_threshold
            if threshold is not None and self.now - consumer.used >= threshold:
                del self.consumers[consumer.name]
        for upload in list(self.uploads.open.values()):
            if upload.expires <= self.now:
                self.give_up(upload.id)
        for topic in {message.topic for message in self.messages.values()}:
            policy = self._policy(topic)
            if policy is not None:
                self._remove([message.id for message in self._beyond(topic, policy)])
                self._remove([message.id for message in self._settled_by_all(topic, policy)])
        for place, key in list(self.keys.items()):
            if key.id not in self.messages and key.stored < self.now - self._window:
                del self.keys[place]

    def _beyond(self, topic: str, policy: PolicyConfig) -> Iterator[Message]:
        """Too old, or too many."""
        there = self._in(topic)
        if policy.max_age is not None:
            while there and there[0].sealed < self.now - policy.max_age:
                yield there.pop(0)
        if policy.max_messages is not None and policy.discard == "old":
            while len(there) > policy.max_messages:
                yield there.pop(0)
        if policy.max_bytes is not None and policy.discard == "old":
            while sum(message.size for message in there) > policy.max_bytes:
                yield there.pop(0)

    def _settled_by_all(self, topic: str, policy: PolicyConfig) -> Iterator[Message]:
        interested = [c for c in self.consumers.values() if matches(c.config.filter, topic)]
        if policy.retention == "limits" or (policy.retention == "workqueue" and not interested):
            return
        for message in self._in(topic):
            if all(message.id in c.done or not self._waits(c, message) for c in interested):
                yield message

    @staticmethod
    def _waits(consumer: Consumer, message: Message) -> bool:
        return message.id in consumer.handed or consumer.takes(message)

    def restart(self) -> None:
        """After a stop or a crash: whoever held a delivery holds it still; and what is due is done.

        Of an open message nobody holds any: that is remembered once it is stored.
        """
        self._forget(self.uploads.open)
        self.uploads.restart(self.now)
        for consumer in self.consumers.values():
            consumer.used = self.now
            for handed in consumer.handed.values():
                handed.held = True
        self.sweep()
