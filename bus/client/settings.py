"""Settings of a client."""

from __future__ import annotations

from dataclasses import dataclass, field

from tensorbus.streaming.ahead import check_threads, default_threads


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Time-outs of a client, in seconds (there is none for a whole transfer), and its threads.

    Raises:
        InvalidRequest: ``threads``, or the environment variable TENSORBUS_THREADS, is no number from 1 to 64.
    """

    connect_timeout: float = 10.0
    """For one attempt to open a connection."""
    idle_timeout: float = 60.0
    """A transfer of which no byte moves for so long is cut and tried again."""
    retry_for: float = 60.0
    """A call that gets no further for so long, over all its attempts, fails with `BrokerUnavailable`."""
    poll_wait: float = 30.0
    """How long one request for deliveries waits at the broker."""
    threads: int = field(default_factory=default_threads)
    """That encode each message that is published: as many as there are processors, up to 4, unless
    TENSORBUS_THREADS says otherwise. 1 makes each slice when it is its turn, and none ahead."""
    shuffle: bool = False
    """Of several addresses, begin with any rather than with the first, so that many clients spread."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
