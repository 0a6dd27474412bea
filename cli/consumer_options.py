"""What may be said about a consumer on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from functools import wraps
from typing import Any

import click

from tensorbus.bus.consumers import Start


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """Settings of a consumer as `Client.subscribe` takes them."""

    start: Start
    ack_wait: float
    backoff: tuple[float, ...]
    max_deliver: int | None
    dead_letter: str | None


class _StartType(click.ParamType[Start]):
    """``all``, ``new``, a position in the log, or an ISO 8601 time (local, unless it says otherwise)."""

    name = "all|new|SEQ|TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Start:
        if value == "all" or value == "new":
            return value
        if value.isascii() and value.isdigit() and 0 < len(value) < 19 and int(value) > 0:
            return int(value)
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(
                f"{value!r} is neither all, new, a position such as 17, nor an ISO 8601 time", param, ctx
            )


class _BackoffType(click.ParamType[tuple[float, ...]]):
    """Seconds, separated by commas."""

    name = "SECONDS,…"

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(wait) for wait in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of seconds such as 1,5,30", param, ctx)


def consumer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of ConsumerOptions, which arrive as ``options``."""

    @wraps(command)
    def gathered(**given: Any) -> None:  # values of click's options, which have their types from it
        own = {field.name: given.pop(field.name) for field in fields(ConsumerOptions)}
        command(options=ConsumerOptions(**own), **given)

    for option in (
        click.option("--dead-letter", metavar="TOPIC", help="Where dead letters go.  [default: dead.NAME]"),
        click.option(
            "--max-deliver",
            type=click.IntRange(min=1),
            help="Attempts after which a message becomes a dead letter.  [default: no end]",
        ),
        click.option(
            "--backoff",
            type=_BackoffType(),
            default=(),
            help="In place of --ack-wait, seconds for each attempt; the last holds for all further ones.",
        ),
        click.option(
            "--ack-wait",
            type=click.FloatRange(min=0.01),
            default=30.0,
            show_default=True,
            help="Seconds after which a message that its worker let go is handed to another.",
        ),
        click.option(
            "--start",
            type=_StartType(),
            default="all",
            show_default=True,
            help="Where a new consumer begins: with all that is stored, with what is new, with a position in "
            "the log, or with a time.",
        ),
    ):
        gathered = option(gathered)
    return gathered
