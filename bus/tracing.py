"""Distributed traces (W3C Trace Context): carried in a message's headers, from publisher to subscriber.

OpenTelemetry is not needed. Where a program uses it, a message that is published within a span carries
``traceparent`` (and ``tracestate``), and whoever gets the message can go on from there::

    async for delivery in subscription:
        with tracer.start_as_current_span("train", context=delivery.trace_context()):
            ...

or, where one piece of work takes many messages, link to their spans: ``links=[delivery.trace_link()]``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .messages import MAX_HEADERS, HeaderValue

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII
)


def trace_id_of(traceparent: object) -> str | None:
    """The trace's id, 32 hex digits, if ``traceparent`` is one; else None: traces never fail a call."""
    if not isinstance(traceparent, str) or len(traceparent) > 512:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else None


def current() -> dict[str, str]:
    """The headers that name the span that is active here; empty without one, or without OpenTelemetry."""
    # A span can only be active if the program has loaded OpenTelemetry: it is not loaded for this.
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def injected(headers: Mapping[str, HeaderValue]) -> Mapping[str, HeaderValue]:
    """The headers of a message that is published here and now: its own, and those that name the span.

    A ``traceparent`` that the caller has set stays. A message that has no room for more goes without.
    """
    if TRACEPARENT in headers:
        return headers
    found = current()
    if not found or len(headers) + len(found) > MAX_HEADERS:
        return headers
    return {**headers, **found}


def context_of(headers: Mapping[str, object]) -> Context | None:
    """OpenTelemetry's context of the span in which a message with these headers was published.

    None if it was published without one, or if the package ``opentelemetry-api`` is not installed.
    """
    if trace_id_of(headers.get(TRACEPARENT)) is None:
        return None
    try:
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    carrier = {name: str(headers[name]) for name in (TRACEPARENT, TRACESTATE) if headers.get(name)}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def link_of(headers: Mapping[str, object]) -> Link | None:
    """OpenTelemetry's link to that span. None as for `context_of`."""
    context = context_of(headers)
    if context is None:
        return None
    from opentelemetry.trace import Link, get_current_span

    return Link(get_current_span(context).get_span_context())
