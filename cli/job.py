"""`tensorbus job`: how a federated job stands; pause, resume and cancel it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from .broker_options import broker_options, tls_settings
from .output import print_json

if TYPE_CHECKING:
    from tensorbus.aggregator.control import Action
    from tensorbus.aggregator.status import JobStatus

job_option = click.option("--job", required=True, help="Name of the job.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("job")
def command() -> None:
    """See how a federated job stands; pause, resume or cancel it.

    What is ordered here is kept at the broker: it holds for an aggregator that is started later, too.

    \b
    Example:
      tensorbus job status --job sft
      tensorbus job pause --job sft
    """


@command.command("status")
@job_option
@json_option
@broker_options
def status(job: str, as_json: bool, url: str, token: str | None) -> None:
    """Show the open round, who has answered it, and who has not."""
    found = asyncio.run(_look(job, url, token))
    if as_json:
        print_json(found.to_json())
        return
    for line in _lines(found):
        click.echo(line)


@command.command("pause")
@job_option
@json_option
@broker_options
def pause(job: str, as_json: bool, url: str, token: str | None) -> None:
    """Let no round close until the job is resumed.

    Sites go on with what they are at, and their updates are taken; a model that has begun to be published
    still comes, and no other one. The deadline waits as well.
    """
    _order("pause", job, as_json, url, token)


@command.command("resume")
@job_option
@json_option
@broker_options
def resume(job: str, as_json: bool, url: str, token: str | None) -> None:
    """Go on with a job that was paused."""
    _order("resume", job, as_json, url, token)


@command.command("cancel")
@job_option
@json_option
@broker_options
def cancel(job: str, as_json: bool, url: str, token: str | None) -> None:
    """End a job for good.

    The aggregator ends, and the sites' loops do, with an error that says so. What is on its way is given up.
    The last model stays at the broker, updates and records go. It cannot be undone.
    """
    _order("cancel", job, as_json, url, token)


def _order(action: Action, job: str, as_json: bool, url: str, token: str | None) -> None:
    asyncio.run(_give(action, job, url, token))
    if as_json:
        print_json({"job": job, "ordered": action})
    else:
        click.echo(f"{job}: {action} is ordered; its aggregator does so as soon as it hears of it")


async def _give(action: Action, job: str, url: str, token: str | None) -> None:
    from tensorbus.aggregator.control import give_order
    from tensorbus.aggregator.status import job_status
    from tensorbus.bus.client import Client

    async with Client(url, token, tls=tls_settings()) as bus:
        found = await job_status(bus, job)  # which there is
        if found.state in ("done", "cancelled"):
            raise click.ClickException(f"job {job!r} is {found.state}; there is nothing to {action}")
        await give_order(bus, job, action)


async def _look(job: str, url: str, token: str | None) -> JobStatus:
    from tensorbus.aggregator.status import job_status
    from tensorbus.bus.client import Client

    async with Client(url, token, tls=tls_settings()) as bus:
        return await job_status(bus, job)


def _lines(found: JobStatus) -> list[str]:
    """A status in words."""
    if found.state == "waiting":
        return [f"{found.job}: waiting for a first model"]
    model = f"newest model: message {found.model}" if found.model else "there is no model"
    if found.state in ("done", "cancelled"):
        return [f"{found.job}: {found.state}, round {found.round} of {found.rounds}", model]
    what = "updates" if found.mode == "buffered" else "sites"
    lines = [
        f"{found.job}: round {found.round} of {found.rounds} is {found.state}",
        f"{len(found.sites) + len(found.late)} updates are in; {found.full} {what} close the round, "
        f"{found.enough} after {found.deadline:g} s",
    ]
    if found.seconds is not None:
        lines.append(f"it began {found.seconds:.0f} s ago")
    said = {"in": found.sites, "late": found.late, "declined": found.declined, "left": found.left}
    lines += [f"{name}: {', '.join(sites)}" for name, sites in said.items() if sites]
    if found.publishing is not None:
        lines.append(f"the next model is being published: {found.publishing} of {found.publishing_of} bytes")
    return [*lines, model]
