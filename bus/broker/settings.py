"""What whoever runs a broker may set about the broker itself (not about HTTP)."""

from __future__ import annotations

from dataclasses import dataclass

from tensorbus.bus.stores.syncing import Sync

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Limits and paces of a Broker; sizes in bytes.

    Attributes:
        max_message_bytes: the largest body that is accepted.
        max_open_messages: uploads at a time over all topics.
        max_consumers: durable consumers.
        max_owned_consumers: of these, those that one token has made.
        max_policies: of retention.
        batch_bytes: an upload collects at most this much before it goes to a worker thread.
        gather_bytes: all uploads together collect about this much; beyond it, each waits for its own bytes.
        sync_bytes: an upload is written through to the disk in steps of this size while it arrives.
        chunk_bytes: the largest chunk that a reader yields, and so its buffer.
        io_threads: worker threads that write, check and read frame files.
        inline_bytes: messages up to this size are kept in memory while they come in, and with their rows
            then; they need no file, and no sync but that of their row.
        duplicate_window: seconds for which an idempotency key is remembered though its message is gone.
        upload_expiry: seconds for which a resumable upload is kept though nobody goes on with it.
        max_uploads: resumable uploads that are begun and not ended.
        warm_uploads: of those without a writer, how many are kept at hand, so as to go on at once.
        sync: when what is acknowledged is on stable storage: ``always`` by then, or after so many seconds at
            the latest, or ``never`` before the system thinks of it. Only a power cut tells them apart.
        sweep_interval: seconds between two looks at what has grown old; 0 leaves them to ``Broker.sweep``.
    """

    max_message_bytes: int = 1 << 40
    max_open_messages: int = 1024
    max_consumers: int = 10_000
    max_owned_consumers: int = 1000
    max_policies: int = 1000
    batch_bytes: int = MIB
    gather_bytes: int = 32 * MIB
    sync_bytes: int = 32 * MIB
    chunk_bytes: int = MIB // 4
    io_threads: int = 4
    inline_bytes: int = 64 * 1024
    duplicate_window: float = 7 * 86400.0
    sync: Sync = "always"
    sweep_interval: float = 5.0
    upload_expiry: float = 86400.0
    max_uploads: int = 10_000
    warm_uploads: int = 32
