"""Addresses: where the brokers of one store can be reached, and which of them is asked now.

Strategy. The first one is asked until it is away; then the next, which is stayed with in turn. Whoever fails
says which address it was that failed, so that many calls that fail together move on by one.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from yarl import URL

from tensorbus.errors import InvalidRequest, TensorbusError

log = logging.getLogger("tensorbus.client")

Urls = str | Sequence[str]
"""One URL; several in one string with commas between them; or a sequence of URLs."""


class Addresses:
    """The URLs of brokers, without a slash at the end.

    Args:
        given: in the order in which they are asked.
        shuffle: begin anywhere instead, so that many clients spread over them.

    Attributes:
        all: of them, in order.

    Raises:
        InvalidRequest: one of them is no broker's URL or stands there twice, or some are http and some https.
    """

    def __init__(self, given: Urls, *, shuffle: bool = False) -> None:
        self.all = _parse(given)
        self._at = random.randrange(len(self.all)) if shuffle else 0  # noqa: S311 - no secret
        self._problems: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.all)

    @property
    def current(self) -> str:
        """Where the next request goes."""
        return self.all[self._at]

    @property
    def encrypted(self) -> bool:
        """Whether they are https."""
        return self.all[0].startswith("https:")

    def answered(self, address: str) -> None:
        """A broker is there."""
        self._problems.pop(address, None)

    def failed(self, address: str, why: str) -> None:
        """None is there, or it cannot answer: the next request goes to the next address."""
        self._problems[address] = why
        if address == self.current and len(self.all) > 1:
            self._at = (self._at + 1) % len(self.all)
            log.info("%s: %s; going on at %s", address, why, self.current)

    def explained(self, error: TensorbusError) -> TensorbusError:
        """``error`` for the caller, saying of each address what was wrong there; of one, itself."""
        tried = [f"{address} ({why})" for address in self.all if (why := self._problems.get(address))]
        if len(tried) < 2:
            return error
        found = type(error)(f"no broker answers, tried {', '.join(tried)}")
        found.__cause__ = error
        return found


def _parse(given: Urls) -> tuple[str, ...]:
    texts = [text.strip() for text in given.split(",")] if isinstance(given, str) else list(given)
    if not texts:
        raise InvalidRequest("no broker's URL is given; one looks like http://127.0.0.1:8080")
    found: dict[tuple[object, ...], str] = {}
    for number, text in enumerate(texts, 1):
        place = f" (address {number} of {len(texts)})" if len(texts) > 1 else ""
        url = _url(text, place)
        identity = (url.scheme, url.host, url.port, url.path.rstrip("/"))
        if identity in found:
            raise InvalidRequest(f"{text!r}{place} is there twice")
        found[identity] = str(url).rstrip("/")
    if len({identity[0] for identity in found}) > 1:
        raise InvalidRequest(
            f"{', '.join(found.values())}: some are http and some https; what is to be encrypted would go "
            "in the clear when a broker is away"
        )
    return tuple(found.values())


def _url(text: object, place: str) -> URL:
    if text == "" and place:
        raise InvalidRequest(f"a broker's URL is empty{place}")
    try:
        url = URL(text) if isinstance(text, str) else URL()
        port = url.port
    except ValueError:
        url, port = URL(), None
    if url.user is not None or url.password is not None:
        raise InvalidRequest(f"a broker's URL holds no user or password{place}; give a token instead")
    if url.scheme not in ("http", "https") or not url.host or port is None:
        raise InvalidRequest(f"{text!r}{place} is no broker URL; it should look like http://127.0.0.1:8080")
    return url.with_query(None).with_fragment(None)
