"""What is handed to a store, and what it gives back: plain values. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tensorbus.bus.consumers import ConsumerConfig
from tensorbus.bus.dead import Death
from tensorbus.bus.messages import MessageInfo
from tensorbus.bus.policies import PolicyConfig


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """A message that was handed to a consumer.

    Attributes:
        consumer: the consumer's uid.
        message: the message's id.
        seq: of the message.
        attempt: how often it was handed over.
        due: when it may be handed over again.
        settled: True for one that is settled for good but lies beyond the consumer's position.
        returned: how many of the attempts were given back before anybody looked at the message.
    """

    consumer: str
    message: str
    seq: int
    attempt: int
    due: float
    settled: bool = False
    returned: int = 0


@dataclass(frozen=True, slots=True)
class StoredConsumer:
    """A durable consumer. ``uid`` is new with each creation, so that tokens of a namesake are not its own.

    ``owner`` is the id of the token that made it, None without tokens.
    """

    name: str
    uid: str
    config: ConsumerConfig
    position: int
    created: datetime
    deliveries: tuple[StoredDelivery, ...] = ()
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A sealed message, and its frames where they are kept with its row and were asked for."""

    info: MessageInfo
    frames: bytes | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """What one pull wants of the store.

    Attributes:
        consumer: the consumer's uid; ``name`` is its name.
        filter: topics of new messages.
        again: deliveries that are handed over once more, as they are to be noted.
        position: new messages are looked for behind this seq, ``window`` further ones at most.
        limit: how many new messages.
        due: when the new ones may be handed over again.
        inline: the largest body in bytes that is wanted along; 0 for none.
    """

    consumer: str
    name: str
    filter: str
    again: tuple[StoredDelivery, ...]
    position: int
    window: int
    limit: int
    due: float
    inline: int = 0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What it got.

    Attributes:
        again: the messages of ``HandOver.again``; None for one that is gone or damaged, and not noted. The
            last ones may be missing: they fit no more, and are as they were.
        new: new messages, by seq, each noted as its first delivery.
        position: everything up to this seq has been handed over, or is not for this consumer.
        complete: whether there is nothing behind it.
    """

    again: tuple[StoredMessage | None, ...]
    new: tuple[StoredMessage, ...]
    position: int
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """A sealed message that is listed anew, under another id and topic, with the same frames.

    Attributes:
        source: id of the message that is copied.
        id: of the copy.
        dead: why it is a dead letter; None for one that is replayed.
        settled_for: uids of consumers that are not to be handed the copy.
    """

    source: str
    id: str
    topic: str
    key: str | None
    dead: Death | None
    sealed: float
    settled_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """An upload that is resumed after a restart; its id is that of the message to be.

    Attributes:
        length: bytes of the body, None if it is not known yet.
        metadata: what its creator said about it.
        owner: the id of the token that made it, None without tokens.
        expires: when it may be removed, unless there is progress.
    """

    id: str
    topic: str
    key: str | None
    length: int | None
    metadata: Mapping[str, str]
    owner: str | None
    created: datetime
    expires: float


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a message is listed; None is no limit.

    Attributes:
        owner: the id of the token that published it, None without tokens.
        owner_bytes: the most that its owner may have stored, this message included.
        max_messages, max_bytes: the most that its topic may hold, this message included; a topic whose old
            messages make room for new ones has no such limits here.
        largest: the most bytes that its topic ever holds, whatever it removes for them.
        quota: what these limits are called, for the error.
        replaces: the id of a damaged message that goes in the same transaction, and whose key passes on.
    """

    owner: str | None = None
    owner_bytes: int | None = None
    max_messages: int | None = None
    max_bytes: int | None = None
    largest: int | None = None
    quota: str = ""
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy under its name."""

    name: str
    config: PolicyConfig
    created: datetime


@dataclass(frozen=True, slots=True)
class Aged:
    """What retention by limits needs to know of a message; ``sealed`` in seconds since the epoch."""

    id: str
    bytes: int
    sealed: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What is stored: messages, and their bytes."""

    messages: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Space:
    """What the rows take on the disk, and what of it is free, in bytes; ``log`` is the write-ahead log."""

    used: int
    free: int
    log: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: bytes that are free for this process, and its size."""

    free: int
    size: int


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Listing:
    """A small message to be listed: ``info`` has all but the seq, ``body`` are its frames."""

    info: MessageInfo
    body: bytes
    terms: Terms = NO_TERMS
