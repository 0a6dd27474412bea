"""What a client shows of itself in each request."""

from __future__ import annotations

import ipaddress
import logging
import re

from yarl import URL

from tensorbus.errors import InvalidRequest

from .addresses import Addresses

log = logging.getLogger("tensorbus.client")

_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}", re.ASCII)
"""What a bearer token may look like (RFC 6750); the broker says whether it is one of its own."""


def authorization(token: str, addresses: Addresses) -> dict[str, str]:
    """The field that holds a token. Raises InvalidRequest if it cannot be one."""
    if not _BEARER.fullmatch(token):
        raise InvalidRequest("the token holds characters that no token has; one reads tb_…")
    away = [host for each in addresses.all if not _is_here(host := URL(each).host or "")]
    if away and not addresses.encrypted:
        log.warning("the token goes to %s in the clear; use https", ", ".join(away))
    return {"Authorization": f"Bearer {token}"}


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
