"""A message that was handed over and is not settled; the credit of the stream that it went out on. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pending:
    """A message that was handed over and is not settled.

    Attributes:
        seq: None while the message is open.
        attempt: how often it was handed over.
        returned: how many of these attempts were given back before anybody looked at the message.
        due: on the broker's monotonic clock; when it may be handed over again.
        held: by a worker; False after a nak.
        settling: its end is being committed.
        sealing: the message is being committed together with this delivery.
        credit: of the stream that it went out on.
    """

    message: str
    seq: int | None
    attempt: int
    due: float
    held: bool
    returned: int = 0
    settling: bool = False
    sealing: bool = False
    credit: Credit | None = None

    @property
    def tries(self) -> int:
        """The attempts that count."""
        return self.attempt - self.returned


class Credit:
    """How many more deliveries a stream may carry before some of those that it carried are settled.

    Args:
        limit: of deliveries that are not settled, and whose time is not over.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[str, Pending] = {}

    @property
    def left(self) -> int:
        """Deliveries that may go out now."""
        return self._limit - len(self._held)

    def take(self, pending: Pending) -> None:
        """A delivery goes out."""
        pending.credit = self
        self._held[pending.message] = pending

    def give_back(self, pending: Pending) -> None:
        """It was settled, or is another's now."""
        pending.credit = None
        self._held.pop(pending.message, None)

    def expire(self, now: float) -> None:
        """Those whose time is over count no more."""
        for pending in [each for each in self._held.values() if each.due <= now]:
            self.give_back(pending)

    def next_due(self) -> float | None:
        """When the time of one is over."""
        return min((pending.due for pending in self._held.values()), default=None)

    def close(self) -> None:
        """The stream is over; what it carried is still to be settled."""
        for pending in list(self._held.values()):
            self.give_back(pending)


def return_credit(pending: Pending) -> None:
    """A delivery is not (any more) in the hands of whom it was given to."""
    if pending.credit is not None:
        pending.credit.give_back(pending)
