"""A site of the demo: a fine-tuning script that takes part in a federation. It names no codec.

    python -m tensorbus.demo.site --url http://127.0.0.1:8080 --job demo --site a \\
        --model demo-output/model --share 0 --shares 2

``take_part`` is the part to read; the rest is options. Events go to stdout, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tensorbus.aggregator.participant import Participant
from tensorbus.bus.access import read_credential
from tensorbus.bus.client import Client, TlsSettings

from .corpus import corpus_folder, read_topics, share_out
from .events import SiteEvents
from .memory import resident
from .model import WEIGHTS, load

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """Where a site finds its job, its model folder and its share of the text.

    Attributes:
        token: for a broker that asks for one.
        ca: authorities that an https broker's certificate is checked by; None for the system's.
    """

    url: str
    job: str
    site: str
    model: Path
    share: int
    shares: int
    steps: int
    seed: int
    state: Path | None
    token: str | None = None
    ca: Path | None = None


async def take_part(settings: SiteSettings, events: SiteEvents) -> None:
    """Train in every round of the job, then look at the final model."""
    from .training import Trainer

    with events.phase("load", 0):
        model, tokenizer = load(settings.model, settings.seed)
        share = share_out(read_topics(corpus_folder()), settings.shares)[settings.share]
        trainer = Trainer(model, tokenizer, share, settings.seed * 1000 + settings.share)
        events.emit("share", topics=share.topics, dialogues=len(share.train), held_out=len(share.held_out))

    down, up = events.progress("down"), events.progress("up")
    tls = None if settings.ca is None else TlsSettings(settings.ca)
    async with Client(settings.url, settings.token, tls=tls) as bus:
        participant = Participant(
            bus,
            job=settings.job,
            site=settings.site,
            base=settings.model / WEIGHTS,
            state=settings.state,
            down=down,
            up=up,
        )
        waiting = events.begin("wait", 1)
        async for task in participant.rounds():
            events.end("wait", task.round, waiting)

            with events.transfer("down", task.round) as transfer:
                await task.load(into=model)
                transfer.moved(task.model.info.bytes, task.model.info.original_bytes)

            with events.phase("evaluate", task.round):
                held_out, tokens = trainer.evaluate()
                events.emit("evaluated", round=task.round, loss=held_out, tokens=tokens)
            with events.phase("train", task.round):
                told = step_teller(events, task.round, settings.steps)
                loss, examples = trainer.train(settings.steps, told)
                gc.collect()

            with events.transfer("up", task.round) as transfer:
                metrics = {"loss": loss, "held_out_loss": held_out}
                receipt = await task.submit(model.state_dict(), num_examples=examples, metrics=metrics)
                if receipt is not None:
                    transfer.moved(receipt.bytes_on_wire, receipt.bytes_original)
            waiting = events.begin("wait", task.round + 1)

        final = participant.final
        events.end("wait", final.round, waiting)
        with events.transfer("down", final.round) as transfer:
            await final.load(into=model, progress=down)
            transfer.moved(final.info.bytes, final.info.original_bytes)
        with events.phase("evaluate", final.round):
            held_out, tokens = trainer.evaluate()
            events.emit("evaluated", round=final.round, loss=held_out, tokens=tokens)
    sizes = resident()
    events.emit("final", digest=digest(model), peak=None if sizes is None else sizes[1])


def step_teller(events: SiteEvents, number: int, steps: int) -> Callable[[int, float], None]:
    """Tells of each step of round ``number``."""

    def tell(step: int, loss: float) -> None:
        events.emit("step", round=number, step=step, steps=steps, loss=loss)

    return tell


def digest(model: nn.Module) -> str:
    """SHA-256 over all parameters: equal at two sites exactly when their models are."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().numpy().data.cast("B"))
    return found.hexdigest()


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--url", required=True, help="Address of the broker, or of several.")
@click.option("--job", required=True)
@click.option("--site", required=True, help="This site's name.")
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path), help="Its folder.")
@click.option("--share", required=True, type=int, help="Which share of the text is this site's, from 0 on.")
@click.option("--shares", required=True, type=int, help="How many shares there are.")
@click.option("--steps", default=6, show_default=True, help="Training steps a round.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Threads to compute with.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder for what it keeps from round to round."
)
@click.option("--token-file", envvar="TENSORBUS_TOKEN_FILE", type=_FILE, help="Holds the access token.")
@click.option("--tls-ca", envvar="TENSORBUS_TLS_CA", type=_FILE, help="Authorities of an https broker.")
def main(
    url: str,
    job: str,
    site: str,
    model: Path,
    share: int,
    shares: int,
    steps: int,
    seed: int,
    threads: int,
    state: Path | None,
    token_file: Path | None,
    tls_ca: Path | None,
) -> None:
    """Take part in a federated job as one site of the demo."""
    import torch

    torch.set_num_threads(threads)
    token = None if token_file is None else read_credential(token_file)
    settings = SiteSettings(url, job, site, model, share, shares, steps, seed, state, token, tls_ca)
    asyncio.run(take_part(settings, SiteEvents()))


if __name__ == "__main__":
    main()
