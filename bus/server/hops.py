"""What is common to all requests that brokers of one store hand on to each other."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from multidict import CIMultiDict

from tensorbus.errors import BrokerUnavailable

from .loans import LENGTH, WRITER

_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        WRITER.lower(),
        LENGTH.lower(),
    }
)
"""Fields that concern one connection only (RFC 9110, 7.6.1), and those that only brokers use."""


def without_hops(fields: Mapping[str, str]) -> CIMultiDict[str]:
    """Those that are the other end's business."""
    return CIMultiDict((name, value) for name, value in fields.items() if name.lower() not in _HOP)


def unreachable(leader: str, problem: Exception) -> BrokerUnavailable:
    """The error for a leader that does not answer, with what can be done about it."""
    if isinstance(problem, aiohttp.ClientConnectorCertificateError):
        error = problem.certificate_error
        return BrokerUnavailable(
            f"the broker that leads, {leader}, is not trusted by this one "
            f"({getattr(error, 'verify_message', '') or error}); "
            "SSL_CERT_FILE in this one's environment names the file of its certificate's authority"
        )
    reason = str(problem) or type(problem).__name__
    return BrokerUnavailable(f"the broker that leads cannot be reached: {reason}")
