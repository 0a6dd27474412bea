"""TLS of a client: whom it trusts, and what it shows of itself."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass

import aiohttp

from tensorbus.errors import InvalidCertificate

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files for an ``https`` URL. The broker's certificate and name are always verified.

    Attributes:
        ca: authorities that are trusted, in place of the system's.
        cert: the client's own certificate, for a broker that asks for one.
        key: its private key, without a password, if it is not in ``cert``.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, with these files as they are now.

        Raises:
            InvalidCertificate: one cannot be read, or they do not fit together.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise InvalidCertificate(f"{self.ca} holds no certificates of authorities: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            try:
                # The callback keeps OpenSSL from asking for a password on the terminal.
                context.load_cert_chain(self.cert, self.key, password=lambda: "")
            except (OSError, ValueError) as error:
                files = str(self.cert) if self.key is None else f"{self.cert} and {self.key}"
                raise InvalidCertificate(f"{files} are no certificate with its key: {error}") from error
        elif self.key is not None:
            raise InvalidCertificate(f"the key {self.key} is of no use without its certificate")
        return context


def mistrust(error: BaseException) -> str | None:
    """What one end says against the other's certificate; None if something else went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorCertificateError):
            cause = cause.certificate_error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError) and (reason := cause.reason or "") and "ALERT" in reason:
            if "CERT" in reason or "UNKNOWN_CA" in reason:
                return "the broker refuses the client's certificate: " + reason.lower().replace("_", " ")
            return None
        nested = cause.os_error if isinstance(cause, aiohttp.ClientConnectorError) else None
        cause = cause.__cause__ if nested is None else nested
    return None


PROBE_TIMEOUT = 2.0
"""Seconds after which a connection on which nothing was said counts as accepted."""


async def is_shut_out(host: str, port: int, context: ssl.SSLContext) -> bool:
    """Whether the broker ends new connections right after their handshake.

    With TLS 1.3 a client believes the handshake to be over before the broker has judged its certificate, and
    a refusal may come as a mere reset, which looks like a broker that went away. One that goes away does not
    do so twice.
    """
    for _ in range(2):
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
        except (OSError, TimeoutError):
            return False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                if await reader.read(1):
                    return False
        except TimeoutError:
            return False
        except OSError:  # an alert, or a reset
            pass
        finally:
            writer.transport.abort()
    return True
