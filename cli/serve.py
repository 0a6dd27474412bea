"""`tensorbus serve`: the broker as a process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path

import click

from tensorbus import __version__
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.server.logs import configure_logs
from tensorbus.bus.stores.file import FileStore

from .allocator import keep_large_buffers
from .loops import run

MIB = 1 << 20
log = logging.getLogger("tensorbus.serve")

EPILOG = """\b
Try it:
  tensorbus serve --data ./bus-data
  curl -d 'hello' http://127.0.0.1:8080/v1/topics/demo.greetings/messages
  curl http://127.0.0.1:8080/v1/messages

Stop it with Ctrl-C or SIGTERM: uploads in progress get a few seconds to finish. Whatever was acknowledged is
on disk and is there again at the next start.
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
    "--allow-remote",
    is_flag=True,
    envvar="TENSORBUS_ALLOW_REMOTE",
    help="Allow an address that other machines can reach. The broker asks nobody for a password. "
    "Also: TENSORBUS_ALLOW_REMOTE=1.",
)
@click.option(
    "--idle-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds without a single byte after which a transfer is ended. Slow ones are never cut off.",
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
@click.option("--log-json", is_flag=True, help="Log one JSON object a line (to standard error).")
@click.option("--verbose", is_flag=True, help="Log health checks and details too.")
@click.option(
    "--json", "as_json", is_flag=True, help="When ready, print one JSON line with the URL to standard output."
)
def command(
    host: str,
    port: int,
    data: Path,
    allow_remote: bool,
    idle_timeout: float,
    max_message: int,
    max_uploads: int,
    log_json: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run the broker: keep messages in a directory and serve them over HTTP.

    The API is described at /openapi.json; /healthz, /readyz and /metrics are for whoever watches it.

    Exit code 0 after a stop, 1 if it cannot start: the port is taken, the directory is in use by another
    broker, or was written by a newer version.
    """
    keep_large_buffers()
    configure_logs(as_json=log_json, verbose=verbose)
    settings = ServerSettings(host=host, port=port, allow_remote=allow_remote, idle_timeout=idle_timeout)
    limits = BrokerSettings(max_message_bytes=max_message * MIB, max_open_messages=max_uploads)
    run(serve(data, limits, settings, as_json=as_json))


async def serve(data: Path, limits: BrokerSettings, settings: ServerSettings, *, as_json: bool) -> None:
    """Serve until SIGTERM or SIGINT. Raises PortInUse, StoreInUse, StoreVersion, StorageError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Broker(FileStore(data), limits) as broker, Server(broker, settings) as server:
        announce(server.url, data, as_json=as_json)
        if not settings.is_loopback:
            log.warning("other machines can reach this broker, and it asks nobody for a password")
        await stop.wait()
        log.info("stopping")


def announce(url: str, data: Path, *, as_json: bool) -> None:
    """Say that the broker is ready, to a program or to a person."""
    directory = str(data.absolute())
    if as_json:
        ready = {"event": "ready", "url": url, "data": directory, "pid": os.getpid(), "version": __version__}
        click.echo(json.dumps(ready))
    else:
        click.echo(f"Tensorbus {__version__} is ready at {url}, messages are kept in {directory}")
