"""The value of `--sync`."""

from __future__ import annotations

import click

from tensorbus.bus.stores.syncing import LONGEST_INTERVAL, Sync


class SyncType(click.ParamType[Sync]):
    """``always``, ``never``, or a number of seconds."""

    name = "always|SECONDS|never"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Sync:
        """The value of an option."""
        text = str(value)
        if text == "always" or text == "never":
            return text
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0.001 <= seconds <= LONGEST_INTERVAL:
            self.fail(
                f"{text!r} is neither always, never, nor 0.001 to {LONGEST_INTERVAL:g} seconds", param, ctx
            )
        return seconds
