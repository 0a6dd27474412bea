"""TLS of the server: which files, and what is made of them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from aiohttp import web

from tensorbus.errors import InvalidCertificate


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, read when the server starts and again on `Server.reload`.

    Attributes:
        cert: the server's certificate and what is between it and its root.
        key: its private key, without a password; None if it is in ``cert``.
        client_ca: roots of the clients' certificates: whoever shows none of them is refused. None: no asking.
    """

    cert: Path
    key: Path | None = None
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, with these files as they are now.

        Raises:
            InvalidCertificate: one cannot be read, or they do not fit together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # The server never has to read before it may write.
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            # The callback keeps OpenSSL from asking for a password on the terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            files = f"{self.cert}" if self.key is None else f"{self.cert} and {self.key}"
            raise InvalidCertificate(f"{files} are no certificate with its key: {_words(error)}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise InvalidCertificate(
                    f"{self.client_ca} holds no certificates to check clients by: {_words(error)}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)


def peer_subject(request: web.BaseRequest) -> str | None:
    """The common name, or else the first other name, of the client's certificate; None if it showed none."""
    transport = request.transport
    certificate = None if transport is None else cast(object, transport.get_extra_info("peercert"))
    if not certificate or not isinstance(certificate, dict):
        return None
    shown = cast(dict[str, object], certificate)
    for entry in cast(tuple[tuple[tuple[str, str], ...], ...], shown.get("subject", ())):
        for kind, name in entry:
            if kind == "commonName":
                return name
    names = cast(tuple[tuple[str, str], ...], shown.get("subjectAltName", ()))
    return names[0][1] if names else None
