"""Runs a training script unchanged, with a FederatedCallback in each of its Trainers."""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tensorbus.bus.client import TlsSettings
from tensorbus.bus.client.sync import SyncClient
from tensorbus.errors import BrokerUnavailable, JobCancelled, TensorbusError

from .packages import missing

try:
    from transformers import Trainer
except ModuleNotFoundError as error:
    raise missing("transformers", error) from error

from .training_run import explained
from .transformers import FederatedCallback


@contextmanager
def federated_trainers(make: Callable[[], FederatedCallback]) -> Generator[None]:
    """Within the block, every Trainer that is made gets a callback of ``make``, in addition to its own."""
    original = Trainer.__init__

    @functools.wraps(original)
    def begin(self: Trainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not any(isinstance(one, FederatedCallback) for one in self.callback_handler.callbacks):
            self.add_callback(make())

    Trainer.__init__ = begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.__init__ = original  # type: ignore[method-assign]


def run(script: Path, arguments: tuple[str, ...], callback: FederatedCallback) -> None:
    """Run ``script`` as ``python script arguments…`` would; what it raises is raised here.

    A script that ends in the midst of its training leaves the job.
    """
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    reason = "its script has ended"
    try:
        with federated_trainers(lambda: callback):
            runpy.run_path(str(script), run_name="__main__")
    except BaseException as error:
        reason = f"its script has failed: {type(error).__name__}: {error}"
        raise
    finally:
        callback.close(reason)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--job", required=True, envvar="TENSORBUS_JOB", show_envvar=True, help="Name of the job.")
@click.option("--site", required=True, envvar="TENSORBUS_SITE", show_envvar=True, help="Name of this site.")
@click.option(
    "--url",
    envvar="TENSORBUS_URL",
    show_envvar=True,
    default="http://127.0.0.1:8080",
    show_default=True,
    help="Address of the broker; of several of one store, with commas between them.",
)
@click.option("--token", envvar="TENSORBUS_TOKEN", show_envvar=True, help="Access token.")
@click.option(
    "--tls-ca", envvar="TENSORBUS_TLS_CA", show_envvar=True, help="Authorities (PEM) of an https broker."
)
@click.option(
    "--tls-cert", envvar="TENSORBUS_TLS_CERT", show_envvar=True, help="This site's certificate (PEM)."
)
@click.option("--tls-key", envvar="TENSORBUS_TLS_KEY", show_envvar=True, help="Its private key (PEM).")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Of the optimizer in a round.  [default: what the script asks for, divided by the job's rounds]",
)
@click.option(
    "--base", type=click.Path(exists=True), help="What the models are changes from, if the job says so."
)
@click.option(
    "--state", type=click.Path(file_okay=False), help="What the job makes a site keep.  [TENSORBUS_STATE]"
)
@click.option(
    "--reset-optimizer", is_flag=True, help="Forget the optimizer's moments with each global model."
)
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(
    job: str,
    site: str,
    url: str,
    token: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    steps: int | None,
    base: str | None,
    state: str | None,
    reset_optimizer: bool,
    script: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with its ARGUMENTS; each Trainer in it trains as one site of a federated job."""
    tls = TlsSettings(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    try:
        with SyncClient(url, token, tls=tls) as bus:
            callback = FederatedCallback(
                bus, job=job, site=site, steps=steps, base=base, state=state, reset_optimizer=reset_optimizer
            )
            run(script, arguments, callback)
    except TensorbusError as error:
        click.echo(f"tensorbus: {explained(error, job)}", err=True)
        sys.exit(_exit_code(error))


def _exit_code(error: TensorbusError) -> int:
    """As of the command line."""
    if isinstance(error, BrokerUnavailable):
        return 3
    return 5 if isinstance(error, JobCancelled) else 1
