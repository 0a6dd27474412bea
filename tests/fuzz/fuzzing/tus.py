"""Resumable uploads: whatever is asked of an upload, its offset never lies, and what is stored was sent.

An input is up to twelve requests about one upload of a golden message: creation, pieces at offsets right and
wrong, checksums right and wrong, questions, terminations.
"""

from __future__ import annotations

import base64
import hashlib

from fuzzing.engine import fuzz, golden, instrumented

with instrumented(include=["tensorbus"]):
    from fuzzing.requests import Maker
    from fuzzing.served import Answer, Finding, Served

MESSAGES = list(golden().values())
TUS = [("Tus-Resumable", "1.0.0")]
PATCH = [*TUS, ("Content-Type", "application/offset+octet-stream")]
SERVED = Served()


class Upload:
    """What we believe of one upload: its place, and how much of the message the broker has."""

    def __init__(self, make: Maker) -> None:
        self._make = make
        self._whole = MESSAGES[make.number(len(MESSAGES) - 1)]
        self._place: str | None = None
        self._offset = 0
        self._honest = True
        """Whether all bytes that were taken so far are the message's own."""

    async def step(self) -> None:
        """One request."""
        make = self._make
        if self._place is None:
            await self._create()
            return
        match make.number(9):
            case 0:
                await self._ask()
            case 1:
                method = make.one_of(("DELETE", "GET", "OPTIONS", "POST", "PUT"))
                await self._send(method, self._place, [] if make.number(3) == 0 else TUS, None)
                self._place = None if method == "DELETE" else self._place
            case 2:
                await self._send("GET", f"{self._place}/heads", [], None)
            case 3:
                offset, body = make.number(len(self._whole)), make.raw(500)
                await self._patch(
                    offset, body, offset == self._offset and self._whole[offset:].startswith(body)
                )
            case _:
                end = min(len(self._whole), self._offset + 1 + make.number(8000))
                await self._patch(self._offset, self._whole[self._offset : end], True)

    async def _create(self) -> None:
        make = self._make
        fields = [*TUS]
        match make.number(5):
            case 0:
                fields.append(("Upload-Defer-Length", "1"))
            case 1:
                fields.append(("Upload-Length", make.text()))
            case _:
                fields.append(("Upload-Length", str(len(self._whole))))
        if make.number(2) == 0:
            fields.append(("Upload-Metadata", make.text()))
        if make.number(2) == 0:
            fields.append(("Idempotency-Key", make.one_of(("k1", "k2", "k3"))))
        body, self._offset, self._honest = None, 0, True
        if make.number(2) == 0:
            body = self._whole[: make.number(len(self._whole))]
            fields.append(PATCH[-1])
        request = make.request("POST", make.address("/v1/topics/a/uploads"), fields, body)
        answer = await SERVED.send(request)
        if answer is not None and answer.status == 201:
            self._place = answer.headers["location"]
            # By its key it may be one that others have begun, with other bytes.
            self._honest = b"\r\nIdempotency-Key:" not in request
            self._offset = int(answer.headers.get("upload-offset", "0"))
            self._check(len(body or b""))

    async def _patch(self, offset: int, body: bytes, honest: bool) -> None:
        make = self._make
        fields = [*PATCH, ("Upload-Offset", str(offset))]
        match make.number(6):
            case 0:
                digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
                fields.append(("Upload-Checksum", f"sha256 {digest}"))
            case 1:
                fields.append(("Upload-Checksum", make.text()))
            case 2:
                fields.append(("Upload-Length", str(len(self._whole))))
            case _:
                pass
        assert self._place is not None
        before = self._offset
        answer = await self._send("PATCH", self._place, fields, body)
        if answer is None:
            await self._ask()
        elif answer.status == 204:
            if offset != before and self._honest:
                raise Finding(f"bytes for offset {offset} were taken at {before}")
            self._honest = self._honest and honest
            self._offset = int(answer.headers["upload-offset"])
            if self._offset > offset + len(body):
                raise Finding(f"{len(body)} bytes at {offset} made the offset {self._offset}")
        elif answer.status in (404, 410, 422):
            self._place = None
        else:
            await self._ask()

    async def _ask(self) -> None:
        assert self._place is not None
        answer = await self._send("HEAD", self._place, TUS, None)
        if answer is None or answer.status >= 400:
            self._place = None
            return
        self._offset = int(answer.headers["upload-offset"])
        self._check(len(self._whole))
        name = answer.headers.get("tensorbus-message")
        if name is not None and self._honest:
            there = await SERVED.send(b"GET /v1/messages/%s/frames HTTP/1.0\r\n\r\n" % name.encode())
            if there is None or there.body != self._whole:
                shown = there and (there.status, len(there.body), there.body[:200])
                raise Finding(
                    f"the message {name} is not the {len(self._whole)} bytes that were sent: {shown}"
                )
            self._place = None

    def _check(self, most: int) -> None:
        if self._honest and self._offset > most:
            raise Finding(f"the offset is {self._offset}, and only {most} bytes were ever sent")

    async def _send(
        self, method: str, address: str, fields: list[tuple[str, str]], body: bytes | None
    ) -> Answer | None:
        return await SERVED.send(self._make.request(method, address, fields, body))


async def exchange(data: bytes) -> None:
    """Send the requests of one input."""
    make = Maker(data)
    upload = Upload(make)
    for _ in range(12):
        if not make.more:
            return
        await upload.step()


def one(data: bytes) -> None:
    """The target."""
    SERVED.run(exchange(data))


if __name__ == "__main__":
    fuzz(one)
