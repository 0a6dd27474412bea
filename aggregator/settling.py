"""Settling deliveries of a job's answers."""

from __future__ import annotations

import logging

from tensorbus.bus.client import Delivery
from tensorbus.errors import AlreadySettled, NotFound

log = logging.getLogger("tensorbus.aggregator")

PUT_OFF = 60.0
"""Seconds after which an update of a site that was not drawn is looked at again."""


def shown_site(delivery: Delivery) -> str:
    """The site that a message says it is from, which may be anything."""
    site = delivery.headers.get("site")
    return site if isinstance(site, str) and len(site) <= 64 and site.isprintable() else ascii(site)[:64]


async def put_off(delivery: Delivery, seconds: float) -> None:
    """Have it delivered again when it can be folded; or sooner, should the round end before that."""
    try:
        await delivery.nak(min(seconds, PUT_OFF))
    except (AlreadySettled, NotFound) as error:
        log.info("update %s: %s", delivery.id, error)


async def acknowledge(delivery: Delivery) -> None:
    """Ack; a delivery that slipped away will come again, late, and be ignored then."""
    try:
        await delivery.ack()
    except (AlreadySettled, NotFound) as error:
        log.info("update %s: %s", delivery.id, error)
