"""Which requests go into the audit log, and what is said of them."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from tensorbus.bus import log_context
from tensorbus.bus.access.audit import record

from .access import identity_of, was_hidden
from .problems import Handler
from .tls import peer_subject

ACTIONS = {
    ("POST", "/v1/topics/{topic}/messages"): "message.publish",
    ("POST", "/v1/topics/{topic}/batch"): "message.publish-batch",
    ("POST", "/v1/topics/{topic}/uploads"): "upload.create",
    ("PATCH", "/v1/uploads/{id}"): "upload.write",
    ("POST", "/v1/uploads/{id}"): "upload.override",
    ("DELETE", "/v1/uploads/{id}"): "upload.delete",
    ("DELETE", "/v1/messages/{id}"): "message.delete",
    ("POST", "/v1/messages/{id}/replay"): "message.replay",
    ("DELETE", "/v1/dead-letters"): "dead-letters.purge",
    ("PUT", "/v1/consumers/{name}"): "consumer.create",
    ("DELETE", "/v1/consumers/{name}"): "consumer.delete",
    ("PUT", "/v1/policies/{name}"): "policy.put",
    ("DELETE", "/v1/policies/{name}"): "policy.delete",
    ("POST", "/v1/scrub"): "scrub.begin",
    ("DELETE", "/v1/scrub"): "scrub.stop",
    ("POST", "/v1/tokens"): "token.create",
    ("DELETE", "/v1/tokens/{id}"): "token.revoke",
}
"""What is always told, whatever its outcome."""

UNTOLD = {
    ("DELETE", "/v1/consumers/{name}/deliveries/stream/{stream}"),
    ("POST", "/v1/consumers/{name}/deliveries"),
    ("POST", "/v1/consumers/{name}/deliveries/{token}/ack"),
    ("POST", "/v1/consumers/{name}/deliveries/{token}/nak"),
    ("POST", "/v1/consumers/{name}/deliveries/{token}/term"),
    ("POST", "/v1/consumers/{name}/deliveries/{token}/in_progress"),
    ("POST", "/v1/consumers/{name}/acks"),
    ("POST", "/v1/consumers/{name}/naks"),
    ("POST", "/v1/consumers/{name}/in_progress"),
}
"""What changes something, but is the daily work of a consumer; like reading, told only when it is refused."""

_REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
_NOTES = web.RequestKey("notes", dict[str, object])


def note(request: web.Request, **fields: object) -> None:
    """Have the entry about ``request`` say this too."""
    request[_NOTES] = request.get(_NOTES, {}) | fields


@web.middleware
async def audit_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Write an entry when a request is over that changed something, or was refused."""
    status, message = 499, None  # as in the log of requests: the client left
    try:
        response = await handler(request)
        status = response.status
        message = response.headers.get("Tensorbus-Message") or _named(response.headers.get("Location", ""))
        return response
    finally:
        _tell(request, status, message)


def _named(location: str) -> str | None:
    """The message that the address of a new thing names; an upload has the id of its message to be."""
    kind, _, name = location.rpartition("/")
    return name if kind in ("/v1/messages", "/v1/uploads") else None


def _tell(request: web.Request, status: int, message: str | None) -> None:
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    action = ACTIONS.get((request.method, route))
    refused = status in _REFUSALS or was_hidden(request)
    if action is None and not refused:
        return
    identity = identity_of(request)
    if refused:
        outcome = "refused"
    elif status < HTTPStatus.BAD_REQUEST:
        outcome = "done"
    else:
        outcome = "cut" if status == 499 else "failed"
    # Without tokens, nobody can be told from anybody: such lines are of little use in a busy log.
    routine = outcome == "done" and identity.token is None
    object_ = {name: value[:255] for name, value in request.match_info.items() if name != "token"}
    record(
        action or f"{request.method} {route}",
        outcome,
        routine=routine,
        status=status,
        token=identity.id,
        name=None if identity.token is None else identity.token.name,
        peer=request.remote,
        subject=peer_subject(request),
        object=object_ or None,
        message=message,
        request=log_context.request_id.get(),
        **request.get(_NOTES, {}),
    )
