"""The command line: one file a command, loaded when it is called, so that help is quick."""

from __future__ import annotations

import importlib
import sys

import click

from tensorbus import __version__
from tensorbus.errors import BrokerUnavailable, JobCancelled, NotFound, TensorbusError

COMMANDS = {
    "serve": "Run the broker.",
    "aggregate": "Run the aggregator of a federated job.",
    "job": "See how a federated job stands; pause, resume or cancel it.",
    "publish": "Publish a file as a message.",
    "fetch": "Fetch a message into a file.",
    "subscribe": "Print messages as they arrive.",
    "top": "Show what a broker is doing, live.",
    "topics": "List topics.",
    "dead": "List, replay and remove what could not be dealt with.",
    "policies": "Say how long messages are kept.",
    "inspect": "Show a message and its manifest.",
    "token": "Make, list and revoke access tokens.",
    "scrub": "Verify everything that is stored.",
    "backup": "Copy what is stored, while the broker runs.",
    "privacy": "Say what clipping and noise are worth.",
    "doctor": "Say what is installed and in use here, and what is broken.",
    "demo": "Run a whole federation of a small language model on this machine.",
}

FAILED = 1
UNAVAILABLE = 3
NOT_FOUND = 4
CANCELLED = 5
INTERRUPTED = 130


class LazyGroup(click.Group):
    """Lists commands without importing them; ``cli/<name>.py`` holds the click command ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tensorbus.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tensorbus")
def cli() -> None:
    """Tensorbus moves models between the sites of a federation: small, lean and safe.

    Start a broker with `tensorbus serve`, then publish a model with
    `tensorbus publish models.demo model.safetensors --codec nf4`.

    \b
    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the broker
    cannot be reached, 4 no such message, item or consumer, 5 the job was
    cancelled, 130 interrupted.
    """


def main() -> None:
    """Entry point; the exit codes are those of the help text."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except (TensorbusError, OSError) as error:
        click.echo(f"tensorbus: {error}", err=True)
        sys.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """What the process says of ``error``."""
    if isinstance(error, BrokerUnavailable):
        return UNAVAILABLE
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, JobCancelled):
        return CANCELLED
    return FAILED
