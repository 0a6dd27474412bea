"""`tensorbus aggregate`: the aggregator of a federated job."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .broker_options import broker_options, tls_settings
from .round_view import RoundLines, RoundView

if TYPE_CHECKING:
    from tensorbus.aggregator.job import JobSpec
    from tensorbus.bus.client import Client


@dataclass(frozen=True, slots=True)
class _Region:
    """What the options of a region say: the job above, its own name there, and where that is."""

    parent: str
    site: str
    url: str
    token: str | None


def _share(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A share of something, ``80%`` or ``0.8``, as a float."""
    try:
        return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no share; write 80% or 0.8") from None


def _quorum(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """A count, as an int, or a share, as the text that it is."""
    if value.endswith("%"):
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a count nor a share such as 80%") from None


@click.command("aggregate")
@click.option("--job", required=True, help="Name of the job; sites join it by this name.")
@click.option("--sites", required=True, type=click.IntRange(min=1), help="How many sites are expected.")
@click.option(
    "--rounds", type=click.IntRange(min=1), help="How many rounds to run. A region has those of its parent."
)
@click.option(
    "--quorum",
    callback=_quorum,
    default="100%",
    show_default=True,
    metavar="COUNT|SHARE",
    help="Sites that are enough at the deadline: a count, or a share of those that did not decline.",
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
    "--skip",
    multiple=True,
    metavar="PATTERN",
    help="Tensors of such names never leave a site, e.g. '*embed*'; they stay as they are. Repeatable.",
)
@click.option(
    "--reducer",
    default="mean",
    show_default=True,
    metavar="STEPS",
    help="What makes one model of the updates, e.g. 'clip:1.0 | trimmed:0.1 | fedadam:lr=0.01'.",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="The same bits whatever the order in which updates arrive; sums take 16 bytes a parameter.",
)
@click.option(
    "--accumulator",
    type=click.Choice(["memory", "file"]),
    default="memory",
    show_default=True,
    help="Where updates are summed: in memory, or in a memory-mapped file in the state folder.",
)
@click.option(
    "--buffered",
    type=click.IntRange(min=1),
    metavar="UPDATES",
    help="A round ends with so many updates, whoever they are from, and sites go on with the newest model at "
    "their own pace (FedBuff).  [default: rounds of all sites]",
)
@click.option(
    "--staleness",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="ROUNDS",
    help="How late an update may be and still count; 0 drops what is late.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="An update that is d rounds late counts with (1 + d)^-alpha of its examples.",
)
@click.option(
    "--select",
    callback=_share,
    default="100%",
    show_default=True,
    metavar="SHARE",
    help="Of all sites, those that take part in a round, drawn anew for each; if more are drawn than "
    "--sites, the first ones count.",
)
@click.option(
    "--own-topics",
    is_flag=True,
    help="Each site answers on a topic of its own, fl.JOB.updates.SITE, so that its token can be kept to it "
    "and none can speak for another.  [default: all on fl.JOB.updates]",
)
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="The first model, a .safetensors file or the folder of a PEFT adapter; without it, a message on "
    "fl.JOB.seed is awaited.",
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
    help="What outlives a restart, where --down has feedback, or delta and the first model is not a file, or "
    "--reducer a server optimiser.",
)
@click.option(
    "--parent",
    metavar="JOB",
    help="Be a region: a participant of this job, which gives the models and gets what the sites here sum up "
    "to. --down, --init and --rounds are the parent's.",
)
@click.option("--site", metavar="NAME", help="With --parent: the region's name there.  [default: --job]")
@click.option(
    "--parent-url", metavar="URL", help="With --parent: the broker of that job.  [default: the same]"
)
@click.option(
    "--parent-token",
    envvar="TENSORBUS_PARENT_TOKEN",
    show_envvar=True,
    help="With --parent-url: the access token there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every event as one JSON object per line.")
@broker_options
def command(
    job: str,
    sites: int,
    rounds: int | None,
    quorum: int | str,
    deadline: float,
    down: str,
    up: str,
    keep: tuple[str, ...],
    skip: tuple[str, ...],
    reducer: str,
    deterministic: bool,
    accumulator: str,
    buffered: int | None,
    staleness: int,
    alpha: float,
    select: float,
    own_topics: bool,
    init: Path | None,
    base: Path | None,
    state: Path | None,
    parent: str | None,
    site: str | None,
    parent_url: str | None,
    parent_token: str | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Run the aggregator of a federated job to its final model.

    Each round it publishes a global model on fl.JOB.model, folds the sites' updates from fl.JOB.updates into
    one accumulator as they come, and makes their mean, weighted by the number of examples, the next model.
    It may be stopped and started again at any time: it goes on with the round that is open. `tensorbus job`
    pauses, resumes and cancels it; a cancelled job ends with exit code 5.

    CODEC is a quantiser such as none, bf16, int8 or nf4, or stages and a quantiser, 'delta | nf4'; sites
    learn it with the model. With delta, an update is the change from the round's model.

    \b
    Example:
      tensorbus aggregate --job sft --sites 2 --rounds 5 --init model.safetensors \\
        --down 'delta | feedback | nf4' --up 'delta | nf4' --state ./state
      tensorbus aggregate --job eu --sites 8 --parent sft --parent-url https://world:8080
    """
    from tensorbus.aggregator.job import MAX_ROUNDS, JobSpec
    from tensorbus.aggregator.reducers.spec import ReducerSpec
    from tensorbus.bus.client import Client
    from tensorbus.codecs.pipeline import Pipeline

    region = None
    if parent is not None:
        if rounds is not None or init is not None or down != "none":
            raise click.UsageError("--rounds, --init and --down of a region are its parent's")
        region = _Region(parent, site or job, parent_url or url, parent_token if parent_url else token)
    elif rounds is None:
        raise click.UsageError("--rounds is missing")
    elif site or parent_url:
        raise click.UsageError("--site and --parent-url go with --parent")
    spec = JobSpec(
        job=job,
        sites=sites,
        rounds=rounds or MAX_ROUNDS,
        quorum=quorum,
        deadline=deadline,
        down=Pipeline.parse(down, keep).to_json(),
        up=Pipeline.parse(up, keep, skip).to_json(),
        reducer=ReducerSpec.parse(reducer).to_json(),
        deterministic=deterministic,
        mode="sync" if buffered is None else "buffered",
        buffer=buffered,
        staleness=staleness,
        alpha=alpha,
        select=select,
        own_topics=own_topics,
    )
    bases, tls = [base] if base else [], tls_settings()
    client = Client(url, token, bases=bases, tls=tls)
    above = None if region is None else (region, Client(region.url, region.token, bases=bases, tls=tls))
    with RoundLines() if as_json else RoundView(job) as view:
        stopped = asyncio.run(_run(client, spec, above, init, state, accumulator, view))
    if stopped:
        click.echo("tensorbus: stopped; start it again to go on where it was", err=True)
        raise click.exceptions.Abort


async def _run(
    client: Client,
    spec: JobSpec,
    above: tuple[_Region, Client] | None,
    init: Path | None,
    state: Path | None,
    accumulator: str,
    view: RoundLines | RoundView,
) -> bool:
    """Run the job; True if a signal ended it first."""
    from tensorbus.aggregator.region import Parent, Region
    from tensorbus.aggregator.worker import Aggregator

    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(client)
        origin = None
        if above is not None:
            region, upper = above
            parent = Parent(await stack.enter_async_context(upper), region.parent, region.site, state)
            origin = partial(Region, bus, spec, parent)
        aggregator = Aggregator(
            bus, spec, init=init, listener=view, state=state, accumulator=accumulator, origin=origin
        )
        work = asyncio.ensure_future(aggregator.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            return True
    return False
