"""A replica of a stream that is behind: it answers readers with what was stored before."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Self

import nats
from nats.aio.msg import Msg


class LaggingReplica:
    """Takes the direct gets of a stream; use as a context manager.

    Args:
        server: address of a server.
        stream: whose own replicas are told to take none.
        older: what it has in the place of a message, of which it gets the content.

    Attributes:
        given: how many of its answers were not what is stored.
    """

    def __init__(self, server: str, stream: str, older: Callable[[bytes], bytes]) -> None:
        self._server = server
        self._stream = stream
        self._older = older
        self.given = 0

    async def __aenter__(self) -> Self:
        self._client = await nats.connect(self._server)  # pyright: ignore[reportUnknownMemberType]
        config = (await self._api(f"STREAM.INFO.{self._stream}", {}))["config"]
        await self._api(f"STREAM.UPDATE.{self._stream}", {**config, "allow_direct": False})
        await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            f"$JS.API.DIRECT.GET.{self._stream}.>", cb=self._answer
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        config = (await self._api(f"STREAM.INFO.{self._stream}", {}))["config"]
        await self._api(f"STREAM.UPDATE.{self._stream}", {**config, "allow_direct": True})
        await self._client.close()

    async def _api(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = json.loads(
            (await self._client.request(f"$JS.API.{operation}", json.dumps(request).encode())).data
        )
        assert "error" not in answer, answer
        return answer

    async def _answer(self, question: Msg) -> None:
        subject = question.subject.partition(f"{self._stream}.")[2]
        found = (await self._api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}))["message"]
        stored = base64.b64decode(found["data"])
        older = self._older(stored)
        self.given += older != stored
        await self._client.publish(question.reply, older, headers={"Nats-Sequence": str(found["seq"])})
