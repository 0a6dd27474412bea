"""`tensorbus privacy`: what clipping and noise are worth over many rounds."""

from __future__ import annotations

import click

from .output import print_json


@click.command("privacy")
@click.option(
    "--multiplier",
    type=float,
    required=True,
    help="Of the stage gauss: its noise in norms of the clip before it.",
)
@click.option("--rounds", type=int, required=True, help="In which a site may take part.")
@click.option("--updates", type=int, default=1, show_default=True, help="That go into each model, at least.")
@click.option(
    "--share",
    type=float,
    default=1.0,
    show_default=True,
    help="Of the sites that take part in a round (--select of the job).",
)
@click.option(
    "--delta",
    type=float,
    default=1e-5,
    show_default=True,
    help="Probability that the bound fails; less than 1 / sites.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(multiplier: float, rounds: int, updates: int, share: float, delta: float, as_json: bool) -> None:
    """Say which differential privacy the updates of 'delta | clip:NORM | gauss:MULTIPLIER | …' have.

    It protects a site as a whole, all of its data in all rounds, where all updates weigh the same. It needs
    the package dp-accounting: pip install tensorbus[privacy].

    \b
    Example:
      tensorbus privacy --multiplier 1 --rounds 100 --updates 50 --share 0.1
    """
    from tensorbus.aggregator.privacy import guarantee

    found = guarantee(multiplier, rounds, updates=updates, share=share, delta=delta)
    if as_json:
        print_json({"local_epsilon": found.local, "central_epsilon": found.central, "delta": found.delta})
        return
    click.echo(f"who sees the updates of a site    epsilon {found.local:.4g}, delta {found.delta:g}")
    click.echo(f"who sees nothing but the models   epsilon {found.central:.4g}, delta {found.delta:g}")
