"""A plain HTTP client of one connection, for processes that must start quickly; no library of ours."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PATIENCE = 20.0
"""Seconds without a byte after which a broker counts as gone."""

_TROUBLED = bool(os.environ.get("CRASHING_TROUBLED"))


class Unreachable(Exception):
    """The connection broke, or there was none: what became of the request is not known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, header fields in lower case, and the body to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Wire:
    """Requests to one broker, one after another; connects again after a cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer, once all of it is there. Raises Unreachable."""
        connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, PATIENCE)
        self._connection = None
        try:
            connection.request(method, path, body, dict(headers or {}))
            with connection.getresponse() as response:
                fields = {name.lower(): value for name, value in response.getheaders()}
                answer = Answer(response.status, fields, response.read())
        except (OSError, http.client.HTTPException) as problem:
            connection.close()
            raise Unreachable(f"{method} {path}: {problem!r}") from problem
        if fields.get("connection", "").lower() != "close":
            self._connection = connection
        return answer

    def post(self, path: str, document: Mapping[str, object]) -> Answer:
        """POST a JSON document."""
        return self.call("POST", path, json.dumps(document).encode(), {"Content-Type": "application/json"})


def shown(answer: Answer) -> str:
    """An answer in a line, for a report."""
    return f"{answer.status} {answer.body[:300].decode('utf-8', 'replace')}"


def explained(answer: Answer, *passing: int) -> bool:
    """Whether an answer is one of those that kills bring about, or that a failing disk does."""
    if answer.status in passing:
        return True
    # The answer to HEAD has no body.
    said = not answer.body or b":problem:stor" in answer.body
    return _TROUBLED and answer.status in (500, 503, 507) and said
