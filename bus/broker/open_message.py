"""A message that is being published: what its uploader, its readers and its consumers share."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from enum import Enum

from tensorbus.bus.messages import MessageInfo
from tensorbus.streaming.headers import Envelope

from .wakeup import Wakeup


class Phase(Enum):
    """Of an upload: OPEN → SEALING → SEALED, or ABORTED from either of the first two."""

    OPEN = "open"
    SEALING = "sealing"
    SEALED = "sealed"
    ABORTED = "aborted"


class OpenMessage:
    """The present state of one upload; belongs to the event loop.

    Attributes:
        visible: end of the last verified frame, up to which readers may go. The close frame is not visible
            before the message is sealed: who has read it may rely on the message.
        frames: number of frames verified.
        envelope: what the open frame says, once it has come.
        reason: why it was aborted.
        moved: notified when any of this changes.
    """

    def __init__(self, message_id: str, topic: str, key: str | None, created: datetime) -> None:
        self.id = message_id
        self.topic = topic
        self.key = key
        self.created = created
        self.visible = 0
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

    async def end(self) -> None:
        """Wait until it is sealed or aborted."""
        while not self.ended:
            await self.moved.wait(self.moved.version)
