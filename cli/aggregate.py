"""`tensorbus aggregate`: the aggregator of a federated job."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import broker_options, tls_settings
from .round_view import RoundLines, RoundView

if TYPE_CHECKING:
    from tensorbus.aggregator.job import JobSpec
    from tensorbus.bus.client import Client


@click.command("aggregate")
@click.option("--job", required=True, help="Name of the job; sites join it by this name.")
@click.option("--sites", required=True, type=click.IntRange(min=1), help="How many sites are expected.")
@click.option("--rounds", required=True, type=click.IntRange(min=1), help="How many rounds to run.")
@click.option(
    "--quorum",
    type=click.IntRange(min=1),
    help="Updates that are enough at the deadline.  [default: all]",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="From the begin of a round; then the quorum is enough, and without it the round waits on.",
)
@click.option(
    "--down", default="none", show_default=True, metavar="CODEC", help="Codec of the global models."
)
@click.option("--up", default="none", show_default=True, metavar="CODEC", help="Codec of the sites' updates.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Tensors of such names are sent exactly, both ways, e.g. '*norm*'. Repeatable.",
)
@click.option(
    "--init",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The first model, a .safetensors file; without it, a message on fl.JOB.seed is awaited.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --down 'delta | …', what the models are changes from: a .safetensors file that every site "
    "has.  [default: the first model]",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    envvar="TENSORBUS_STATE",
    show_envvar=True,
    help="What outlives a restart, where --down has feedback, or delta and the first model is not a file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every event as one JSON object per line.")
@broker_options
def command(
    job: str,
    sites: int,
    rounds: int,
    quorum: int | None,
    deadline: float,
    down: str,
    up: str,
    keep: tuple[str, ...],
    init: Path | None,
    base: Path | None,
    state: Path | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Run the aggregator of a federated job to its final model.

    Each round it publishes a global model on fl.JOB.model, folds the sites' updates from fl.JOB.updates into
    one accumulator as they come, and makes their mean, weighted by the number of examples, the next model.
    It may be stopped and started again at any time: it goes on with the round that is open.

    CODEC is a quantiser such as none, bf16, int8 or nf4, or stages and a quantiser, 'delta | nf4'; sites
    learn it with the model. With delta, an update is the change from the round's model.

    \b
    Example:
      tensorbus aggregate --job sft --sites 2 --rounds 5 --init model.safetensors \\
        --down 'delta | nf4' --up 'delta | nf4' --keep '*norm*'
    """
    from tensorbus.aggregator.job import JobSpec
    from tensorbus.bus.client import Client
    from tensorbus.codecs.pipeline import Pipeline

    spec = JobSpec(
        job=job,
        sites=sites,
        rounds=rounds,
        quorum=sites if quorum is None else quorum,
        deadline=deadline,
        down=Pipeline.parse(down, keep).to_json(),
        up=Pipeline.parse(up, keep).to_json(),
    )
    client = Client(url, token, bases=[base] if base else [], tls=tls_settings())
    with RoundLines() if as_json else RoundView(job) as view:
        stopped = asyncio.run(_run(client, spec, init, state, view))
    if stopped:
        click.echo("tensorbus: stopped; start it again to go on where it was", err=True)
        raise click.exceptions.Abort


async def _run(
    client: Client, spec: JobSpec, init: Path | None, state: Path | None, view: RoundLines | RoundView
) -> bool:
    """Run the job; True if a signal ended it first."""
    from tensorbus.aggregator.worker import Aggregator

    loop = asyncio.get_running_loop()
    async with client as bus:
        aggregator = Aggregator(bus, spec, init=init, listener=view, state=state)
        work = asyncio.ensure_future(aggregator.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            return True
    return False
