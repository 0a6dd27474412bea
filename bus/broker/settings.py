"""What whoever runs a broker may set about the broker itself (not about HTTP)."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Limits and paces of a Broker; sizes in bytes.

    Attributes:
        max_message_bytes: the largest body that is accepted.
        max_open_messages: uploads at a time over all topics.
        max_consumers: durable consumers.
        batch_bytes: an upload collects at most this much before it goes to a worker thread.
        gather_bytes: all uploads together collect about this much; beyond it, each waits for its own bytes.
        sync_bytes: an upload is written through to the disk in steps of this size while it arrives.
        chunk_bytes: the largest chunk that a reader yields, and so its buffer.
        io_threads: worker threads that write, check and read frame files.
    """

    max_message_bytes: int = 1 << 40
    max_open_messages: int = 1024
    max_consumers: int = 10_000
    batch_bytes: int = MIB
    gather_bytes: int = 32 * MIB
    sync_bytes: int = 32 * MIB
    chunk_bytes: int = MIB // 4
    io_threads: int = 4
