"""What whoever runs a broker asks it: health, figures, and the description of its API."""

from __future__ import annotations

from aiohttp import web

from .context import context
from .openapi import document

routes = web.RouteTableDef()

_DOCUMENT = document()


@routes.get("/openapi.json")
async def openapi(_request: web.Request) -> web.Response:
    """The API as an OpenAPI 3.1 document."""
    return web.json_response(_DOCUMENT)


@routes.get("/healthz")
async def healthz(_request: web.Request) -> web.Response:
    """The process is alive."""
    return web.json_response({"status": "alive"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """The store answers; an error is a problem document with a status of 500 or more."""
    await context(request).broker.stats()
    return web.json_response({"status": "ready"})


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Counters and gauges in Prometheus' text format."""
    here = context(request)
    stats, counted = await here.broker.stats(), here.counters
    figures = (
        ("messages", "gauge", "Sealed messages in the store.", stats.messages),
        ("stored_bytes", "gauge", "Bytes of sealed messages.", stats.bytes),
        ("damaged_messages", "gauge", "Messages whose frames are lost or damaged.", stats.damaged),
        ("open_messages", "gauge", "Messages that are being published.", stats.open_messages),
        ("open_uploads", "gauge", "Requests that are publishing.", counted.open_uploads),
        ("open_downloads", "gauge", "Requests that are downloading.", counted.open_downloads),
        ("consumers", "gauge", "Durable consumers.", stats.consumers),
        ("ack_pending", "gauge", "Deliveries that are not settled.", stats.ack_pending),
        ("sealed_messages_total", "counter", "Messages acknowledged.", stats.sealed_total),
        ("aborted_messages_total", "counter", "Messages given up.", stats.aborted_total),
        ("deliveries_total", "counter", "Deliveries handed over.", stats.deliveries_total),
        ("acks_total", "counter", "Deliveries acknowledged.", stats.acks_total),
        ("requests_total", "counter", "HTTP requests.", counted.requests),
        ("received_bytes_total", "counter", "Bytes of request bodies.", counted.bytes_in),
        ("sent_bytes_total", "counter", "Bytes of frames sent.", counted.bytes_out),
    )
    lines = [
        f"# HELP tensorbus_{name} {text}\n# TYPE tensorbus_{name} {kind}\ntensorbus_{name} {value}\n"
        for name, kind, text, value in figures
    ]
    return web.Response(
        body="".join(lines).encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )
