"""`tensorbus serve`: the broker as a process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import click

from tensorbus import __version__
from tensorbus.bus.access import TokenFile
from tensorbus.bus.access.audit import AuditFile, audit_to
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.logs import configure_logs
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.stores.syncing import Sync
from tensorbus.errors import TensorbusError

from .access_options import Access, access_options
from .allocator import keep_large_buffers
from .descriptors import connections_within_limit, raise_descriptor_limit
from .loops import run, spare_collections
from .sync_type import SyncType

MIB = 1 << 20
log = logging.getLogger("tensorbus.serve")

EPILOG = """\b
Try it:
  tensorbus serve --data ./bus-data
  curl -d 'hello' http://127.0.0.1:8080/v1/topics/demo.greetings/messages
  curl http://127.0.0.1:8080/v1/messages

Stop it with Ctrl-C or SIGTERM: it takes nothing new, and what is under way gets a few seconds to finish
(--shutdown-timeout; a second Ctrl-C cuts it). Whatever was acknowledged, and what came of resumable uploads,
is on disk and is there again at the next start.
"""


@click.command("serve", epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free."
)
@click.option(
    "--data",
    default="tensorbus-data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that keeps the messages; made if it is missing.",
)
@click.option(
    "--store",
    "address",
    metavar="ADDRESS",
    envvar="TENSORBUS_STORE",
    show_envvar=True,
    help="Keep messages in NATS JetStream: nats://HOST:4222[,HOST:4222…][?replicas=3&name=…]. Any number of "
    "brokers may serve one store. --data then holds the tokens only.",
)
@click.option(
    "--advertise",
    metavar="URL",
    envvar="TENSORBUS_ADVERTISE",
    show_envvar=True,
    help="Where the other brokers of a --store can reach this one, if not at --host and --port.",
)
@access_options
@click.option(
    "--idle-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds without a single byte after which a transfer is ended. Slow ones are never cut off.",
)
@click.option(
    "--shutdown-timeout",
    default=ServerSettings().shutdown_timeout,
    show_default=True,
    type=click.FloatRange(min=0.0),
    help="Seconds that transfers which cannot be resumed get to end when the broker is told to stop.",
)
@click.option(
    "--max-message",
    default=BrokerSettings().max_message_bytes // MIB,
    show_default=True,
    type=click.IntRange(min=1),
    help="Largest message, in MiB.",
)
@click.option(
    "--max-uploads",
    default=BrokerSettings().max_open_messages,
    show_default=True,
    type=click.IntRange(min=1),
    help="Messages that may be published at the same time.",
)
@click.option(
    "--max-owned-consumers",
    default=BrokerSettings().max_owned_consumers,
    show_default=True,
    type=click.IntRange(min=1),
    help="Consumers that one token may have made.",
)
@click.option(
    "--upload-expiry",
    default=BrokerSettings().upload_expiry / 3600,
    show_default=True,
    type=click.FloatRange(min=0.0, min_open=True),
    help="Hours that a resumable upload is kept though nobody goes on with it.",
)
@click.option(
    "--sync",
    default="always",
    show_default=True,
    type=SyncType(),
    help="When what is acknowledged is on the disk: always by then; after so many SECONDS at the latest; or "
    "never before the system thinks of it. A power cut may cost what is not, a crash of the broker nothing.",
)
@click.option("--log-json", is_flag=True, help="Log one JSON object a line (to standard error).")
@click.option("--verbose", is_flag=True, help="Log health checks and details too.")
@click.option(
    "--json", "as_json", is_flag=True, help="When ready, print one JSON line with the URL to standard output."
)
def command(
    host: str,
    port: int,
    data: Path,
    address: str | None,
    advertise: str | None,
    access: Access,
    idle_timeout: float,
    shutdown_timeout: float,
    max_message: int,
    max_uploads: int,
    max_owned_consumers: int,
    upload_expiry: float,
    sync: Sync,
    log_json: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run the broker: keep messages in a directory, or in NATS JetStream, and serve them over HTTP.

    The API is described at /docs and at /openapi.json; /healthz, /readyz and /metrics are for whoever
    watches it.

    Exit code 0 after a stop, 1 if it cannot start: the port is taken, the directory is in use by another
    broker, or was written by a newer version.
    """
    keep_large_buffers()
    raise_descriptor_limit()
    configure_logs(as_json=log_json, verbose=verbose)
    settings = ServerSettings(
        host=host,
        port=port,
        allow_remote=access.allow_remote,
        tls=access.tls,
        max_connections=connections_within_limit(access.max_connections),
        idle_timeout=idle_timeout,
        shutdown_timeout=shutdown_timeout,
    )
    limits = BrokerSettings(
        max_message_bytes=max_message * MIB,
        max_open_messages=max_uploads,
        max_owned_consumers=max_owned_consumers,
        upload_expiry=upload_expiry * 3600,
        sync=sync,
    )
    if advertise is not None and address is None:
        raise click.UsageError("--advertise is for brokers that share a --store")
    with audit_to(access.audit_log) as audit:
        if address is None:
            run(serve(data, limits, settings, audit, as_json=as_json))
        else:
            from .gateway import serve_gateway  # needs nats-py, which the embedded store does not

            run(serve_gateway(address, advertise, data, limits, settings, audit, as_json=as_json))


async def serve(
    data: Path,
    limits: BrokerSettings,
    settings: ServerSettings,
    audit: AuditFile | None = None,
    *,
    as_json: bool,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP renews certificates and the audit log's file.

    Raises PortInUse, StoreInUse, StoreVersion, StorageError, InvalidCertificate.
    """
    broker = Broker(FileStore(data), limits)
    server = Server(broker, settings, TokenFile(data))
    stop = stop_on_signals(server)
    async with broker, server, hangups(server, audit):
        spare_collections()
        announce(server.url, data, as_json=as_json)
        say_who_may_come(server, settings, data)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


class _Hurried(Protocol):
    def hurry(self) -> None: ...


def stop_on_signals(server: _Hurried) -> asyncio.Event:
    """What the first SIGTERM or SIGINT sets; after the second no transfer is waited for; the third kills."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def heard() -> None:
        if not asked.is_set():
            asked.set()
            return
        log.warning("told to stop once more: what is under way is cut")
        server.hurry()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, heard)
    return asked


@asynccontextmanager
async def hangups(server: Server, audit: AuditFile | None) -> AsyncGenerator[None]:
    """On SIGHUP read the files of TLS again, and go on in a new file of the audit log."""
    loop = asyncio.get_running_loop()
    hung_up = asyncio.Event()

    async def renew() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            try:
                if audit is not None:
                    audit.reopen()
                await server.reload()
            except TensorbusError as error:
                log.error("%s; the broker goes on with what it has", error)

    renewing = asyncio.create_task(renew())
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        renewing.cancel()


def say_who_may_come(server: Server, settings: ServerSettings, data: Path) -> None:
    """What whoever starts a broker should know about who can reach it, and how to change it."""
    make_one = f"make one with `tensorbus token create NAME --admin '>' --data {data}`"
    if server.asks_for_tokens:
        if settings.tls is None and not settings.is_loopback:
            log.warning("without TLS, tokens and models can be read on their way; see --tls-cert")
    elif settings.is_loopback:
        log.info(
            "there are no tokens: whoever is on this machine may do everything, nobody else gets in; %s",
            make_one,
        )
    else:
        log.warning("other machines can reach this broker, and it asks nobody for a token; %s", make_one)


def announce(url: str, data: Path | str, *, as_json: bool) -> None:
    """Say that the broker is ready, to a program or to a person."""
    directory = str(data.absolute()) if isinstance(data, Path) else data
    if as_json:
        ready = {"event": "ready", "url": url, "data": directory, "pid": os.getpid(), "version": __version__}
        click.echo(json.dumps(ready))
    else:
        click.echo(f"Tensorbus {__version__} is ready at {url}, messages are kept in {directory}")
