"""What a log line is about: the request and the message that the running task is busy with.

They are context variables: each task has its own, tasks and worker calls that it starts inherit them, and the
log's formatter adds them to every line (`bus.server.logs`).
"""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the HTTP request, as in its ``X-Request-Id``."""
message_id: ContextVar[str | None] = ContextVar("message_id", default=None)
"""Of the message that is published, delivered or settled."""
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""Of the distributed trace that the caller is part of (W3C ``traceparent``)."""


def fields() -> dict[str, str]:
    """Those that are known, by the names that they have in the log."""
    known = (("request", request_id.get()), ("message", message_id.get()), ("trace", trace_id.get()))
    return {name: value for name, value in known if value is not None}
