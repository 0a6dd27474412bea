"""The parts as one document."""

from __future__ import annotations

from collections.abc import Mapping

from tensorbus import __version__

from . import consumers, dead, messages, operations, policies, scrub, status, tokens, uploads
from .operation import Part, common_responses

_PARTS = (messages, uploads, consumers, dead, policies, scrub, tokens, status, operations)

_DESCRIPTION = """Tensorbus carries models between the sites of a federation. A message is published under
a topic as a stream of frames, is acknowledged when it is on stable storage, and is handed to durable
consumers at least once. Every error is `application/problem+json`."""


def document(max_wait: float = 60.0, *, tokens: bool = False) -> Part:
    """The whole document.

    Args:
        max_wait: seconds that a request for deliveries waits at the most.
        tokens: whether the server asks for them.
    """
    paths: Part = {}
    schemas: Part = {}
    for part in _PARTS:
        _add(paths, part.paths())
        _add(schemas, part.schemas())
    schemas["Wait"] = {
        "type": "number",
        "minimum": 0,
        "maximum": max_wait,
        "default": min(30.0, max_wait),
        "description": "How long to wait for the first delivery, in seconds.",
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tensorbus",
            "version": __version__,
            "description": _DESCRIPTION.replace("\n", " "),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in _tags(paths)],
        "security": [{"token": []}] if tokens else [],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": common_responses(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Made with `tensorbus token create`; without any, none is asked for.",
                }
            },
        },
    }


def _add(to: Part, more: Mapping[str, object]) -> None:
    """One name, one meaning: a second part must not take the place of the first's."""
    if both := to.keys() & more.keys():
        raise ValueError(f"described by two parts: {', '.join(sorted(both))}")
    to |= more


def _tags(paths: Part) -> list[str]:
    """Every tag that an operation has, once, in the order of the paths."""
    found: dict[str, None] = {}
    for methods in paths.values():
        assert isinstance(methods, dict)
        for operation in methods.values():  # pyright: ignore[reportUnknownVariableType]
            assert isinstance(operation, dict)
            found |= dict.fromkeys(operation["tags"])  # pyright: ignore[reportUnknownArgumentType]
    return list(found)
