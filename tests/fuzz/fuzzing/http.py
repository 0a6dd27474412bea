"""The HTTP API: any request gets an answer that says what is wrong with it, and does no harm.

An input is up to six requests to one broker; a later one may use what an earlier one was told.
"""

from __future__ import annotations

from typing import cast

from fuzzing.engine import fuzz, golden, instrumented

with instrumented(include=["tensorbus"]):
    from fuzzing.requests import METHODS, Maker
    from fuzzing.served import Answer, Served
    from tensorbus.bus.server.openapi import document

PATHS = cast("dict[str, dict[str, object]]", document()["paths"])
VERBS = ("get", "put", "post", "delete", "patch", "head", "options")
ROUTES = [(verb.upper(), path) for path, verbs in PATHS.items() for verb in verbs if verb in VERBS]
MESSAGES = [*golden().values(), b"hello", b""]
FRAMES = "application/vnd.tensorbus.frames"
SERVED = Served()


async def exchange(data: bytes) -> None:
    """Send the requests of one input."""
    make = Maker(data)
    for _ in range(6):
        if not make.more:
            return
        if make.number(15) == 0:
            await SERVED.send(make.raw(2000), answered=False)
            continue
        remember(make, await SERVED.send(build(make)))


def build(make: Maker) -> bytes:
    """One request."""
    method, template = ROUTES[make.number(len(ROUTES) - 1)]
    if make.number(9) == 0:
        method = make.one_of(METHODS)
    address = make.address(template)
    if method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return make.request(method, address, [], None if make.number(15) else make.raw(100))
    match make.number(4):
        case 0:
            body, kind = MESSAGES[make.number(len(MESSAGES) - 1)], FRAMES
        case 1:
            whole = MESSAGES[make.number(len(MESSAGES) - 1)]
            body, kind = whole[: make.number(len(whole))] + make.raw(50), FRAMES
        case 2:
            body, kind = make.raw(3000), make.text()
        case _:
            body, kind = make.json_body(), "application/json"
    return make.request(method, address, [("Content-Type", kind)], body)


def remember(make: Maker, answer: Answer | None) -> None:
    """Ids, names and tokens in an answer are words for later requests."""
    if answer is None:
        return
    waiting: list[object] = [answer.json]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            words = (fields.get(name) for name in ("id", "name", "token", "topic", "key"))
            make.known += [word for word in words if isinstance(word, str)]
            waiting += fields.values()
        elif isinstance(value, list):
            waiting += cast("list[object]", value)
    if "location" in answer.headers:
        make.known.append(answer.headers["location"].rpartition("/")[2])


def one(data: bytes) -> None:
    """The target."""
    SERVED.run(exchange(data))


if __name__ == "__main__":
    fuzz(one)
