"""Traces go from publisher to subscriber in the message's headers, with the real SDK of OpenTelemetry."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tensorbus.bus import tracing
from tensorbus.bus.client import Client
from tensorbus.bus.server.logs import JsonLines
from tensorbus.bus.testing import running_broker

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path) as url:
        yield url


async def test_a_subscriber_goes_on_in_the_publishers_trace(url: str) -> None:
    """A span around publish is the parent, and may be a link, of the subscriber's span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    async with Client(url) as bus:
        with tracer.start_as_current_span("publish"):
            await bus.publish("models.a", {"weight": np.zeros(3)}, headers={"round": 1})
        async with bus.subscribe("models.>") as subscription:
            async for delivery in subscription:
                assert delivery.headers["round"] == 1
                link = delivery.trace_link()
                assert link is not None
                with tracer.start_as_current_span("train", context=delivery.trace_context(), links=[link]):
                    await delivery.ack()
                break
    published, trained = exporter.get_finished_spans()
    assert (published.name, trained.name) == ("publish", "train")
    assert trained.parent is not None and published.context is not None and trained.context is not None
    assert trained.parent.span_id == published.context.span_id
    assert trained.context.trace_id == published.context.trace_id
    assert [found.context.span_id for found in trained.links] == [published.context.span_id]


async def test_without_a_span_nothing_is_added(url: str) -> None:
    """A message that is published outside of any span has its own headers only, and no context."""
    async with Client(url) as bus:
        receipt = await bus.publish("models.a", b"x", headers={"round": 1})
        message = await bus.fetch(receipt.id)
    assert dict(message.headers) == {"round": 1}
    assert message.trace_context() is None
    assert message.trace_link() is None


async def test_a_trace_that_the_caller_names_is_kept(url: str) -> None:
    """An explicit traceparent wins over the active span; a malformed one is no context and no error."""
    tracer = TracerProvider().get_tracer("test")
    async with Client(url) as bus:
        with tracer.start_as_current_span("publish"):
            named = await bus.publish("models.a", b"x", headers={"traceparent": PARENT})
            wrong = await bus.publish("models.a", b"x", headers={"traceparent": "nonsense"})
            full = await bus.publish("models.a", b"x", headers={f"h{n}": n for n in range(64)})
        assert (await bus.fetch(named.id)).headers["traceparent"] == PARENT
        assert (await bus.fetch(wrong.id)).trace_context() is None
        assert len((await bus.fetch(full.id)).headers) == 64


async def test_any_http_client_can_take_part(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """`traceparent` of a request goes with a plain message, and names the trace in the log."""
    async with aiohttp.ClientSession(url) as http:
        with caplog.at_level(logging.INFO, logger="tensorbus.access"):
            async with http.post(
                "/v1/topics/a/messages", data=b"x", headers={"traceparent": PARENT, "tracestate": "a=b"}
            ) as answer:
                message = (await answer.json())["id"]
        async with http.get(f"/v1/messages/{message}") as answer:
            headers = (await answer.json())["headers"]
    assert headers == {"traceparent": PARENT, "tracestate": "a=b"}
    assert tracing.context_of(headers) is not None
    [record] = [record for record in caplog.records if record.name == "tensorbus.access"]
    assert f'"trace": "{TRACE}"' in JsonLines().format(record)


@pytest.mark.parametrize(
    "traceparent",
    [None, 7, "", PARENT.upper(), "ff" + PARENT[2:], PARENT.replace(TRACE, "0" * 32), PARENT + "x" * 1000],
)
def test_what_is_no_traceparent_is_left_alone(traceparent: object) -> None:
    """Only well-formed ones name a trace (W3C Trace Context, 3.2.2)."""
    assert tracing.trace_id_of(traceparent) is None
    assert tracing.trace_id_of(PARENT) == TRACE


def test_nothing_needs_opentelemetry() -> None:
    """Neither publishing nor reading loads it, or needs it to be installed."""
    program = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import tensorbus.bus.client
from tensorbus.bus import tracing
assert tracing.current() == {}
assert tracing.injected({"a": 1}) == {"a": 1}
assert tracing.context_of({"traceparent": sys.argv[1]}) is None
assert tracing.link_of({"traceparent": sys.argv[1]}) is None
"""
    subprocess.run((sys.executable, "-c", program, PARENT), check=True, timeout=60)
