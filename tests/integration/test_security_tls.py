"""TLS with real certificates: both ends verify, the bytes are the same, and certificates are renewed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme

from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client, ClientSettings, TlsSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.tls import TlsFiles
from tensorbus.bus.stores.file import FileStore
from tensorbus.errors import InvalidCertificate, InvalidRequest, Unauthorized, UntrustedPeer

PATIENT = ClientSettings(retry_for=3600)
"""Whoever waits so long for a refusal fails the test by its own time limit."""


@dataclass
class Files:
    """An authority, and the files of two ends that it vouches for."""

    authority: trustme.CA
    ca: Path
    server: TlsFiles
    client: TlsSettings

    def issue(self, name: str = "127.0.0.1") -> None:
        """A new certificate in the place of the server's."""
        self.authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(self.server.cert))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Fresh ones."""
    folder = tmp_path / "tls"
    folder.mkdir()
    authority = trustme.CA()
    ca, own, key, cert = (folder / name for name in ("ca.pem", "server.pem", "client.key", "client.pem"))
    authority.cert_pem.write_to_path(str(ca))
    client = authority.issue_cert("site-a.example.org", common_name="site-a")
    client.private_key_pem.write_to_path(str(key))
    client.cert_chain_pems[0].write_to_path(str(cert))
    made = Files(authority, ca, TlsFiles(own), TlsSettings(ca, cert, key))
    made.issue()
    return made


@asynccontextmanager
async def serving(
    data: Path, tls: TlsFiles, settings: ServerSettings | None = None
) -> AsyncGenerator[Server]:
    """A broker that speaks TLS."""
    chosen = settings or ServerSettings()
    where = ServerSettings(port=0, tls=tls, head_timeout=chosen.head_timeout)
    async with Broker(FileStore(data)) as broker, Server(broker, where, TokenFile(data)) as server:
        yield server


def serial(url: str, ca: Path) -> str:
    """The serial number of the certificate that a new connection is shown."""
    where = urlsplit(url)
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection((where.hostname, where.port or 0)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        certificate = secure.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


# --- what goes through -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 300_000, 20_000_000])
async def test_messages_are_the_same_over_tls(tmp_path: Path, files: Files, length: int) -> None:
    """Small, middling and large ones; whole, in ranges, by item, and followed while they come."""
    content = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    async with (
        serving(tmp_path / "data", files.server) as server,
        Client(server.url, tls=files.client) as bus,
        aiohttp.ClientSession(server.url) as http,
    ):
        assert server.url.startswith("https://")
        async with bus.subscribe("a", follow=True) as deliveries:
            receipt = await bus.publish("a", content)
            async for delivery in deliveries:
                assert await delivery.load() == content
                await delivery.ack()
                break
        assert await (await bus.fetch(receipt.id)).load() == content
        context = ssl.create_default_context(cafile=files.ca)
        async with http.get(f"/v1/messages/{receipt.id}/frames", ssl=context) as answer:
            whole = await answer.read()
        size = len(whole)
        assert size == (await bus.message(receipt.id)).bytes
        middle = {"Range": f"bytes={size // 3}-{size // 2}"}
        async with http.get(f"/v1/messages/{receipt.id}/frames", ssl=context, headers=middle) as answer:
            assert await answer.read() == whole[size // 3 : size // 2 + 1]
        # And the way that curl and tools without the frames go.
        async with http.post("/v1/topics/b/messages", ssl=context, data=content) as answer:
            stored = await answer.json()
        assert await (await bus.fetch(stored["id"])).load() is not None


async def test_a_large_body_of_frames_in_one_request(tmp_path: Path, files: Files) -> None:
    """The way past the event loop's transport, for large bodies, is not taken where it would be in clear."""
    async with (
        serving(tmp_path / "data", files.server) as server,
        Client(server.url, tls=files.client) as bus,
        aiohttp.ClientSession(server.url) as http,
    ):
        context = ssl.create_default_context(cafile=files.ca)
        receipt = await bus.publish("a", bytes(5_000_000))
        async with http.get(f"/v1/messages/{receipt.id}/frames", ssl=context) as answer:
            frames = await answer.read()
        kind = {"Content-Type": "application/vnd.tensorbus.frames"}
        async with http.post("/v1/topics/b/messages", ssl=context, data=frames, headers=kind) as answer:
            assert answer.status == 201
            assert (await answer.json())["digest"] == (await bus.message(receipt.id)).digest


# --- trust -------------------------------------------------------------------------------------------


async def test_an_unknown_authority_is_not_trusted(tmp_path: Path, files: Files) -> None:
    """The client refuses at once, and sends nothing: neither a token nor a byte of a model."""
    async with serving(tmp_path / "data", files.server) as server, asyncio.timeout(20):
        async with Client(server.url, "tb_x", PATIENT) as bus:
            with pytest.raises(UntrustedPeer, match="certificate"):
                await bus.publish("a", b"x")
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(str(stranger))
        async with Client(server.url, settings=PATIENT, tls=TlsSettings(stranger)) as bus:
            with pytest.raises(UntrustedPeer):
                await bus.topics()


async def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path, files: Files) -> None:
    """The name in the URL has to be one of the certificate's."""
    files.issue("broker.example.org")
    async with (
        asyncio.timeout(20),
        serving(tmp_path / "data", files.server) as server,
        Client(server.url, settings=PATIENT, tls=files.client) as bus,
    ):
        with pytest.raises(UntrustedPeer, match=r"127\.0\.0\.1"):
            await bus.topics()


async def test_mutual_tls_gates_the_connection(tmp_path: Path, files: Files) -> None:
    """Without a certificate of the right authority nobody gets to a request; rights are the tokens'."""
    both = TlsFiles(files.server.cert, client_ca=files.ca)
    token = str(TokenFile(tmp_path / "data").create(TokenPlan("a", Rights(publish=("a",))))[1])
    stranger = trustme.CA().issue_cert("site-a.example.org")
    stranger.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "stranger.pem"))
    async with serving(tmp_path / "data", both) as server, asyncio.timeout(30):
        for wrong in (TlsSettings(files.ca), TlsSettings(files.ca, tmp_path / "stranger.pem")):
            async with Client(server.url, token, PATIENT, tls=wrong) as bus:
                with pytest.raises(UntrustedPeer, match="client's certificate"):
                    await bus.publish("a", b"x")
        async with Client(server.url, token, PATIENT, tls=files.client) as bus:
            await bus.publish("a", b"x")
            with pytest.raises(Unauthorized):
                await bus.publish("b", b"x")
        async with Client(server.url, settings=PATIENT, tls=files.client) as bus:
            with pytest.raises(Unauthorized):
                await bus.publish("a", b"x")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_and_no_tls_are_refused(tmp_path: Path, files: Files) -> None:
    """TLS 1.2 is the least; plain HTTP on that port gets nowhere."""
    async with serving(tmp_path / "data", files.server) as server:
        where = urlsplit(server.url)
        old = ssl.create_default_context(cafile=files.ca)
        old.set_ciphers("DEFAULT@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection(where.hostname, where.port, ssl=old, server_hostname="127.0.0.1")
        new = ssl.create_default_context(cafile=files.ca)
        new.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await asyncio.open_connection(
            where.hostname, where.port, ssl=new, server_hostname="127.0.0.1"
        )
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.close()
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            try:
                assert b"HTTP/" not in await reader.read()
            except ConnectionError:
                pass
        writer.close()


async def test_a_handshake_that_never_ends_is_cut(tmp_path: Path, files: Files) -> None:
    """A peer that connects and says nothing does not keep its connection."""
    hasty = ServerSettings(head_timeout=0.3)
    async with serving(tmp_path / "data", files.server, hasty) as server, asyncio.timeout(20):
        where = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass
        writer.close()


# --- files -------------------------------------------------------------------------------------------


async def test_certificates_are_renewed_while_it_runs(tmp_path: Path, files: Files) -> None:
    """New connections get the new certificate, the open ones go on; a bad file changes nothing."""
    async with (
        serving(tmp_path / "data", files.server) as server,
        Client(server.url, tls=files.client) as bus,
        bus.subscribe("a") as deliveries,
    ):
        url = server.url
        first = await asyncio.to_thread(serial, url, files.ca)
        waiting = asyncio.ensure_future(anext(aiter(deliveries)))
        files.issue()
        await server.reload()
        second = await asyncio.to_thread(serial, url, files.ca)
        assert first != second
        assert server.url == url
        files.server.cert.write_text("no certificate")
        with pytest.raises(InvalidCertificate, match=r"server\.pem"):
            await server.reload()
        assert await asyncio.to_thread(serial, url, files.ca) == second
        await bus.publish("a", b"still here")
        async with asyncio.timeout(20):
            assert await (await waiting).load() == b"still here"


@pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", None])
async def test_bad_files_are_named(tmp_path: Path, content: str | None) -> None:
    """The server does not start, and the client is not made, with files that are none."""
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content)
    with pytest.raises(InvalidCertificate, match=r"bad\.pem"):
        TlsFiles(bad).context()
    with pytest.raises(InvalidCertificate, match=r"bad\.pem"):
        Client("https://127.0.0.1", tls=TlsSettings(bad))
    with pytest.raises(InvalidCertificate, match=r"bad\.pem"):
        Client("https://127.0.0.1", tls=TlsSettings(cert=bad))


def test_settings_that_would_protect_nothing_are_refused(files: Files) -> None:
    """TLS settings with a plain URL are a mistake, and not to be ignored."""
    with pytest.raises(InvalidRequest, match="https"):
        Client("http://127.0.0.1:1", tls=files.client)
    with pytest.raises(InvalidRequest, match="token"):
        Client("http://127.0.0.1:1", "tb_x\r\nX-Evil: 1")
