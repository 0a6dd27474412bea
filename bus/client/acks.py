"""Acks: acknowledgements that are asked for at the same time go in one request, and one flush of the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tensorbus.bus.fields import Fields
from tensorbus.errors import AlreadySettled, DeliveryExpired, TensorbusError

from .connection import Connection
from .documents import JsonObject
from .refusals import error_of
from .retry import TRANSIENT

MAX_TOKENS = 256
"""Deliveries that the broker settles in one request."""


async def failures(
    connection: Connection, path: str, document: JsonObject, *, patience: float | None = None
) -> dict[str, TensorbusError]:
    """Settle the deliveries of ``document["tokens"]``, in one attempt; why some were not.

    Args:
        patience: seconds without a byte of the answer, where it is less than the idle time-out.

    Raises:
        TensorbusError: none of them was settled.
    """
    answer = await connection.call("POST", path, document=document, patience=patience, retry=False)
    found: dict[str, TensorbusError] = {}
    for entry in Fields(answer, "outcomes").array("failed"):
        failed = Fields(entry, "outcomes")
        found[failed.text("token")] = error_of(failed.text("type"), failed.text("detail"))
    return found


class Acks:
    """Sends one request at a time; what is asked for meanwhile waits for the next one.

    Args:
        path: of the consumer.
    """

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection = connection
        self._path = f"{path}/acks"
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._sending: asyncio.Task[None] | None = None

    async def ack(self, token: str) -> None:
        """The delivery is acknowledged, durably, when this returns. Raises as `Delivery.ack`."""
        outcome = self._waiting.get(token)
        if outcome is None:
            outcome = self._waiting[token] = asyncio.get_running_loop().create_future()
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="tensorbus-acks")
        # Shielded: another may wait for the same outcome, and it is sent in any case.
        await asyncio.shield(outcome)

    async def drain(self) -> None:
        """Wait until everything asked for so far has its outcome."""
        while self._sending is not None and not self._sending.done():
            await asyncio.wait([self._sending])

    async def _send(self) -> None:
        while self._waiting:
            batch = dict(list(self._waiting.items())[:MAX_TOKENS])
            for token in batch:
                del self._waiting[token]
            try:
                failed = await self._settle(list(batch))
            except BaseException as problem:
                _tell(batch, dict.fromkeys(batch, problem))
                if not isinstance(problem, Exception):
                    _tell(self._waiting, dict.fromkeys(self._waiting, problem))
                    raise
            else:
                _tell(batch, failed)

    async def _settle(self, tokens: list[str]) -> dict[str, TensorbusError]:
        attempts = self._connection.attempts(f"acknowledgement of {len(tokens)} deliveries")
        answer_lost = False
        while True:
            try:
                failed = await failures(self._connection, self._path, {"tokens": tokens})
                break
            except TRANSIENT as error:
                answer_lost = True
                await attempts.after(error)
        if answer_lost:
            # The first request may have arrived though its answer did not.
            failed = {token: error for token, error in failed.items() if not _was_settled(error)}
        return failed


def _was_settled(error: TensorbusError) -> bool:
    """Whether the message will not be handed over again, by whatever request that was achieved."""
    return isinstance(error, AlreadySettled) and not isinstance(error, DeliveryExpired)


def _tell(outcomes: dict[str, asyncio.Future[None]], failed: Mapping[str, BaseException]) -> None:
    for token, outcome in outcomes.items():
        if outcome.done():
            continue
        problem = failed.get(token)
        if problem is None:
            outcome.set_result(None)
        elif isinstance(problem, Exception):
            outcome.set_exception(problem)
            outcome.exception()  # seen: whoever asked may have been cancelled
        else:
            outcome.cancel()
