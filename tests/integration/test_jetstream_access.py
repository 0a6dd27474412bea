"""NATS servers that speak TLS and ask who comes, and brokers that speak TLS to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from storing import Account, Gateways, NatsServers
from storing.bodies import frames, publish, read
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.client import Client, ClientSettings, TlsSettings
from tensorbus.bus.stores.jetstream import JetStreamSettings, JetStreamStore
from tensorbus.errors import BrokerUnavailable, StorageError

SETTINGS = BrokerSettings(sweep_interval=0)
USER, PASSWORD = "bus", "p@ss:w/rd,?"
QUOTED = "p%40ss%3Aw%2Frd%2C%3F"


@dataclass(frozen=True)
class Files:
    """An authority, another one, and what the first has issued for this machine."""

    ca: Path
    other: Path
    cert: Path

    @property
    def config(self) -> str:
        """A NATS server's."""
        return f'tls {{ cert_file: "{self.cert}", key_file: "{self.cert}" }}\n'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Made for these tests."""
    folder = tmp_path_factory.mktemp("tls")
    made = Files(folder / "ca.pem", folder / "other.pem", folder / "server.pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(made.ca))
    trustme.CA().cert_pem.write_to_path(str(made.other))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(made.cert))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Generator[NatsServers]:
    """One that speaks TLS, to a user with a password."""
    login = f'authorization {{ user: "{USER}", password: "{PASSWORD}" }}\n'
    with NatsServers(tmp_path_factory.mktemp("nats"), config=files.config + login) as running:
        yield running


def address(server: NatsServers, scheme: str = "tls", login: str = f"{USER}:{QUOTED}@") -> str:
    """Of the store, without what stands behind the question mark."""
    return f"{scheme}://{login}127.0.0.1:{server.ports[0]}"


async def use(address: str) -> None:
    """Publish something and read it."""
    async with Broker(JetStreamStore(JetStreamSettings.parse(address)), SETTINGS) as broker:
        body = frames(700_000)
        receipt = await publish(broker, body)
        assert await read(broker, receipt.id) == body


async def refusal(address: str) -> str:
    """Why a broker does not start, which it says soon."""
    with pytest.raises(StorageError) as refused:
        async with asyncio.timeout(20):
            await Broker(JetStreamStore(JetStreamSettings.parse(address)), SETTINGS).start()
    said = str(refused.value)
    assert QUOTED not in said
    assert PASSWORD not in said
    return said


# --- TLS and passwords -------------------------------------------------------------------------------


async def test_over_tls_with_a_password(server: NatsServers, files: Files) -> None:
    """A password may have any character in it; and who writes ``nats://`` gets TLS too if the server asks."""
    await use(f"{address(server)}?ca={files.ca}")
    await use(f"{address(server, 'nats')}?ca={files.ca}")


async def test_a_server_of_another_authority_is_not_trusted(server: NatsServers, files: Files) -> None:
    """It is said which server, whom we trust, and what to write."""
    where = f"127.0.0.1:{server.ports[0]} cannot be reached: the server's certificate is not trusted"
    said = await refusal(f"{address(server)}?ca={files.other}")
    assert where in said
    assert f"by those in ca={files.other}" in said
    said = await refusal(address(server))
    assert where in said
    assert "by the system's authorities; name the file of its authority with ca=FILE" in said


@pytest.mark.parametrize(
    ("login", "reason"),
    [
        ("bus:wrong@", "the server refuses user 'bus' with the password in the address"),
        ("someone@", "the server refuses the token in the address"),
        ("", "the server refuses who gives no name: write USER:PASSWORD@ before the host"),
    ],
)
async def test_who_is_refused_hears_why(server: NatsServers, files: Files, login: str, reason: str) -> None:
    """And where."""
    said = await refusal(f"{address(server, login=login)}?ca={files.ca}")
    assert f"127.0.0.1:{server.ports[0]} cannot be reached: {reason}" in said


async def test_no_password_goes_to_a_server_in_clear(nats_server: NatsServers) -> None:
    """``tls://`` means it: whoever stands in the place of the server gets nothing."""
    before = len(nats_server.log(0))
    said = await refusal(address(nats_server))
    assert "the server does not speak TLS, and tls:// asks for it" in said
    said = await refusal(address(nats_server, login=""))
    assert "the server does not speak TLS, and tls:// asks for it" in said
    assert PASSWORD not in nats_server.log(0)[before:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "ca=")],
)
async def test_a_file_of_authorities_that_is_none(tmp_path: Path, content: str | None, reason: str) -> None:
    """It is named."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    said = await refusal(f"tls://127.0.0.1:1?ca={path}")
    assert f"ca={path} holds no certificates that can be read" in said
    assert reason in said


async def test_a_broker_that_is_let_in_no_more_says_why_and_waits(tmp_path: Path) -> None:
    """The password changes on the servers; when it is as before, the broker goes on by itself."""

    def login(password: str) -> str:
        return f'authorization {{ user: "{USER}", password: "{password}" }}\n'

    def restarted(password: str) -> None:
        server.kill(0)
        server.configure(login(password))
        server.start(0)

    with NatsServers(tmp_path / "nats", config=login("one")) as server:
        where = f"nats://{USER}:one@127.0.0.1:{server.ports[0]}"
        with Gateways(tmp_path, where) as gateways:
            gateways.ready(gateways.start())
            async with Client(gateways.urls[0]) as bus:
                receipt = await bus.publish("t", b"x", key="k")
                await asyncio.to_thread(restarted, "two")
                async with asyncio.timeout(30):
                    while "cannot be reached: the server refuses user 'bus'" not in gateways.log(0):
                        await asyncio.sleep(0.05)
                await asyncio.to_thread(restarted, "one")
                assert (await bus.publish("t", b"x", key="k")).id == receipt.id
            assert await asyncio.to_thread(gateways.stop, 0) == 0


# --- credentials -------------------------------------------------------------------------------------


async def test_with_credentials(tmp_path: Path) -> None:
    """Those that the servers' operator has signed; others are refused, and the file is named."""
    account, other = Account.make(), Account.make()
    account.admit(tmp_path / "bus.creds")
    other.admit(tmp_path / "other.creds")
    with NatsServers(tmp_path / "nats", config=account.config) as server:
        where = f"nats://127.0.0.1:{server.ports[0]}?credentials="
        await use(f"{where}{tmp_path}/bus.creds")
        said = await refusal(f"{where}{tmp_path}/other.creds")
        assert f"the server refuses what is in credentials={tmp_path}/other.creds" in said
        lines = (tmp_path / "bus.creds").read_text().splitlines()
        spoiled = tmp_path / "spoiled.creds"
        spoiled.write_text("\n".join("SUX" if line.startswith("SU") else line for line in lines))
        said = await refusal(f"{where}{spoiled}")
        assert f"what is in credentials={spoiled} cannot be used" in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        ("", "it has no line '-----BEGIN NATS USER JWT-----'"),
        ("-----BEGIN NATS USER JWT-----\nx\n", "it has no line '-----BEGIN USER NKEY SEED-----'"),
        ("-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\n", "with another behind it"),
    ],
)
async def test_a_file_of_credentials_that_is_none(
    tmp_path: Path, nats_server: NatsServers, content: str | None, reason: str
) -> None:
    """It is named, with what is wrong."""
    path = tmp_path / "bus.creds"
    if content is not None:
        path.write_text(content)
    said = await refusal(f"nats://127.0.0.1:{nats_server.ports[0]}?credentials={path}")
    assert f"credentials={path}" in said
    assert reason in said


# --- brokers -----------------------------------------------------------------------------------------


async def test_brokers_reach_each_other_over_tls(
    tmp_path: Path, nats_server: NatsServers, files: Files
) -> None:
    """What one hands on to the other comes back; where that is not trusted, it is said what and where."""
    store = f"{nats_server.address}&name=tls{tmp_path.name[-20:]}"
    options = ["--tls-cert", str(files.cert)]
    with Gateways(tmp_path, store, options=options, trusted=files.ca) as gateways:
        for _ in range(2):
            gateways.start()
        leader = gateways.leader()
        tls = TlsSettings(files.ca)
        async with Client(gateways.urls[1 - leader], tls=tls) as bus:
            receipt = await bus.publish("big", b"x" * 3_000_000, key="k")
            async with bus.subscribe("big", consumer="c") as deliveries:
                delivery = await deliveries.receive()
                assert delivery is not None
                assert delivery.id == receipt.id
                assert await delivery.load() == b"x" * 3_000_000
                await delivery.ack()
        late = gateways.start(trusted=files.other)
        async with Client(gateways.urls[late], tls=tls, settings=ClientSettings(retry_for=3)) as bus:
            with pytest.raises(BrokerUnavailable) as refused:
                await bus.delete(receipt.id)
        said = str(refused.value)
        assert f"the broker that leads, {gateways.urls[leader]}, is not trusted" in said
        assert "SSL_CERT_FILE" in said
