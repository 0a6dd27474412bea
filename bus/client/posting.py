"""Posting: a small message in one request, sent again from the front until it is acknowledged."""

from __future__ import annotations

from tensorbus.bus import messages
from tensorbus.errors import TensorbusError
from tensorbus.streaming.encoder import Encoder

from .body import Body
from .connection import Connection, segment
from .documents import json_object
from .encoding import Encoding
from .handing import is_small
from .outgoing import Outgoing
from .progress import ProgressReporter

WITHOUT_ASKING = 64 << 10
"""Bytes of a body that is sent along with the head of the request: to ask first would take longer."""


class Posting:
    """A message that takes less time to send again than to ask how much of it has come.

    Attributes:
        furthest: the most bytes of the body that an attempt has sent.
        resumed: bytes that need not be sent again; none here.
    """

    def __init__(
        self,
        connection: Connection,
        outgoing: Outgoing,
        encoder: Encoder,
        reporter: ProgressReporter,
    ) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._encoder = encoder
        self._reporter = reporter
        self.furthest = 0
        self.resumed = 0

    async def attempt(self) -> messages.Receipt:
        """One request, from the front."""
        settings = self._connection.settings
        headers = {"Idempotency-Key": self._outgoing.key}
        size = self._encoder.wire_bytes
        if size is None or size > WITHOUT_ASKING:
            # The broker judges topic, key, size and room before the first byte of the body leaves.
            headers["Expect"] = "100-continue"
        # Threads that help take longer to start than a small message to encode.
        threads = 1 if is_small(self._encoder) else settings.threads
        body = Body(self._connection, Encoding(self._encoder, threads), self._reporter)
        try:
            path = f"/v1/topics/{segment(self._outgoing.topic)}/messages"
            async with self._connection.sending("POST", path, headers, body, body.position) as response:
                return messages.Receipt.from_json(await json_object(response))
        except TensorbusError:
            # What went wrong on this side comes first: the connection broke because of it.
            if body.failure is not None:
                raise body.failure from None
            raise
        finally:
            self.furthest = max(self.furthest, body.sent)
            await body.settle()

    async def give_up(self, _error: BaseException) -> None:
        """Nothing is left at the broker."""
