"""Makes the data directory of the format that the installed release writes, as a file that is kept for ever.

    python tests/golden/stores/make.py tests/golden/stores/format-2.tar.xz

To be run once a format, by the first release that writes it; test_golden_stores.py says what is in it.
"""

from __future__ import annotations

import asyncio
import sys
import tarfile
import tempfile
from pathlib import Path

import aiohttp
import numpy as np

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.testing import running_broker

SECRET = "token.txt"
"""Beside the broker's own files: the token that it was filled with."""
LARGE = 100_000
"""Bytes of a message that has a file of its own."""


def weights(factor: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """A model; it compresses well."""
    return {"w": np.full((64, 64), factor, np.float32), "b": np.arange(8, dtype=np.float32)}


async def fill(data: Path) -> None:
    """Everything that a data directory can hold, made through the client."""
    _, token = TokenFile(data).create(TokenPlan("root", Rights(admin=(">",))))
    (data / SECRET).write_text(str(token))
    async with running_broker(data) as url, Client(url, str(token)) as bus:
        await bus.set_policy("notes", PolicyConfig("notes.>", max_messages=100))
        await bus.publish("models.a", weights(1), headers={"round": 1, "final": False}, key="round-1")
        await bus.publish("models.a", weights(2), codec="nf4", headers={"round": 2}, key="round-2")
        await bus.publish("models.large", bytes(LARGE), key="large")
        for number in range(5):
            await bus.publish("notes.day", f"note {number}".encode(), key=f"note-{number}")
        gone = await bus.publish("notes.day", b"gone", key="gone")
        async with bus.subscribe("notes.>", consumer="reader", ack_wait=1) as deliveries:
            taken = [await deliveries.receive() for _ in range(4)]
            for number, delivery in enumerate(taken):
                assert delivery is not None
                if number in (0, 2):
                    await delivery.ack()
                elif number == 3:
                    await delivery.term("cannot be read")
        await bus.delete(gone.id)
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000", "Idempotency-Key": "half"}
        authorization = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(url, headers=authorization) as http,
            http.post("/v1/topics/models.half/uploads", headers=headers) as answer,
        ):
            answer.raise_for_status()


def main(target: str) -> None:
    """Fill a directory and pack it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        asyncio.run(fill(data))
        with tarfile.open(target, "w:xz") as archive:
            for path in sorted(data.rglob("*")):
                if path.suffix != ".lock" and path.name != "lock":
                    archive.add(path, path.relative_to(data), recursive=False, filter=_nobodys)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(sys.argv[1])
