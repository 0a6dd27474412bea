"""Health, figures, the description of the API itself; errors."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbus.bus.server.docs_page import FILES

from .operation import Part, empty_answer, json_answer, operation, parameter, problem
from .values import BINARY, TEXT, Schema, record


def paths() -> Part:
    """Operations by path and method."""
    figures = {
        "description": "Prometheus' text format, or that of OpenMetrics if `Accept` asks for it.",
        "content": {"text/plain": {"schema": TEXT}, "application/openmetrics-text": {"schema": TEXT}},
    }
    this = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}
    page = {"description": "Swagger UI.", "content": {"text/html": {"schema": TEXT}}}
    return {
        "/healthz": _get("healthz", "Is the process alive?", json_answer("Yes.", "Status")),
        "/readyz": _get(
            "readyz", "Does the store answer, and is the broker not stopping?", json_answer("Yes.", "Status")
        ),
        "/metrics": _get("metrics", "Counters, gauges and histograms.", figures, public=False),
        "/openapi.json": _get("openapi", "This document.", this),
        "/docs": _get("docs", "This document as a page.", page),
        "/docs/{file}": {"get": _file()},
    }


def _file() -> Part:
    types: Part = dict.fromkeys(FILES.values(), BINARY)
    return operation(
        "operations",
        "docsFile",
        "One of the files that the page is made of.",
        {
            "200": {"description": "The file.", "content": types},
            "304": empty_answer("Not modified."),
            "404": problem("No such file."),
        },
        parameters=(
            parameter("path", "file", {"enum": list(FILES)}, "The file."),
            parameter("header", "If-None-Match", TEXT, "Only if this is not the entity tag."),
        ),
        public=True,
    )


def _get(name: str, summary: str, answer: Mapping[str, object], *, public: bool = True) -> Part:
    return {"get": operation("operations", name, summary, {"200": answer}, public=public)}


def schemas() -> dict[str, Schema]:
    """JSON values by name."""
    return {
        "Problem": record(
            {
                "type": {"type": "string", "pattern": "^urn:tensorbus:problem:[a-z-]+$"},
                "title": TEXT,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": TEXT,
                "instance": TEXT,
                "request_id": TEXT,
            },
            "What went wrong, where, what to do (RFC 9457). `type` is `urn:tensorbus:problem:` and a word; "
            "the log of the broker has more under `request_id`.",
            optional=("instance", "request_id"),
        ),
        "Status": record({"status": TEXT}, "A word."),
    }
