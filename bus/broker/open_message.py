"""A message that is being published: what its uploader, its readers and its consumers share."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from enum import Enum

from tensorbus.bus.messages import MessageInfo
from tensorbus.streaming.headers import Envelope, Totals

from .leases import Lease
from .wakeup import Wakeup


class Phase(Enum):
    """Of an upload: OPEN → SEALING → SEALED, or ABORTED from either of the first two.

    One that is resumable and could not be sealed is OPEN again.
    """

    OPEN = "open"
    SEALING = "sealing"
    SEALED = "sealed"
    ABORTED = "aborted"


_GROWTH = threading.Lock()
"""Held for a moment by whoever changes how far a message is visible, or begins to wait for that."""


class OpenMessage:
    """The present state of one upload; belongs to the event loop, but for what threads tell each other of
    ``visible``, so that a fast follower need not hear of every frame through the loop.

    Attributes:
        visible: end of the last verified frame, up to which readers may go. The close frame is not visible
            before the message is sealed: who has read it may rely on the message.
        owner: the id of the token that publishes it, None without tokens.
        quota: bytes that its owner may have stored, None for no limit.
        lease: the room that was kept for it, if there are quotas.
        replaces: the id of a damaged message that goes when this one is listed under its key.
        boundary: end of the last verified frame, even if it is the close frame.
        frames: number of frames verified.
        envelope: what the open frame says, once it has come.
        reason: why it was aborted.
        moved: notified when any of this changes.
    """

    def __init__(
        self,
        message_id: str,
        topic: str,
        key: str | None,
        created: datetime,
        owner: str | None = None,
    ) -> None:
        self.id = message_id
        self.topic = topic
        self.key = key
        self.created = created
        self.owner = owner
        self.quota: int | None = None
        self.lease: Lease | None = None
        self.replaces: str | None = None
        self.visible = 0
        self._followers: threading.Condition | None = None
        self.boundary = 0
        self.frames = 0
        self.envelope: Envelope | None = None
        self.phase = Phase.OPEN
        self.reason = ""
        self.moved = Wakeup()
        self._sealed: MessageInfo | None = None

    @property
    def ended(self) -> bool:
        """Whether it is sealed or aborted."""
        return self.phase in (Phase.SEALED, Phase.ABORTED)

    @property
    def info(self) -> MessageInfo:
        """The message as far as it is known."""
        if self._sealed is not None:
            return self._sealed
        envelope = self.envelope
        return MessageInfo(
            id=self.id,
            seq=None,
            topic=self.topic,
            key=self.key,
            state="open",
            bytes=self.visible,
            frames=self.frames,
            headers={} if envelope is None else envelope.headers,
            container="" if envelope is None else envelope.container,
            pipeline={} if envelope is None else envelope.pipeline,
            items=None if envelope is None else envelope.items,
            original_bytes=None if envelope is None else envelope.original_bytes,
            wire_bytes=None if envelope is None else envelope.wire_bytes,
            digest=None,
            created=self.created,
            sealed=None,
        )

    def grow(self, visible: int) -> None:
        """Readers may go as far as ``visible``; from any thread. The loop hears of it otherwise."""
        with _GROWTH:
            self.visible = max(self.visible, visible)
            followers = self._followers
        if followers is not None:
            with followers:
                followers.notify_all()

    def grown(self, position: int, patience: float) -> bool:
        """Wait up to ``patience`` seconds for more than up to ``position``; whether there is. Blocks."""
        with _GROWTH:
            # Most messages are small and never have one: it takes time to make.
            followers = self._followers = self._followers or threading.Condition()
        with followers:
            return followers.wait_for(lambda: self.visible > position, patience)

    def whole(self, size: int, totals: Totals, sealed: datetime) -> MessageInfo:
        """The message as it is to be stored, but for its seq."""
        return replace(
            self.info,
            state="sealed",
            bytes=size,
            frames=totals.frames,
            items=totals.items,
            original_bytes=totals.original_bytes,
            wire_bytes=size,
            digest=totals.digest.hex(),
            sealed=sealed,
        )

    def seal(self, info: MessageInfo, seq: int) -> None:
        """It is on stable storage; ``info`` is the whole but for the seq."""
        self._sealed = replace(info, seq=seq)
        self.visible = info.bytes
        self.phase = Phase.SEALED
        self.moved.notify()

    def abort(self, reason: str) -> None:
        """It was given up."""
        self.reason = reason
        self.phase = Phase.ABORTED
        self.moved.notify()

    async def decided(self) -> None:
        """Wait until it is not being sealed any more."""
        while self.phase is Phase.SEALING:
            await self.moved.wait(self.moved.version)

    async def end(self) -> None:
        """Wait until it is sealed or aborted."""
        while not self.ended:
            await self.moved.wait(self.moved.version)
