"""A publisher in a process of its own, for tests: it keeps residuals, and can die at the worst moments.

    python feedback_publisher.py URL FOLDER FIRST LAST [MOMENT]

Publishes messages FIRST to LAST of a fixed sequence, with residuals in FOLDER. With a MOMENT it sends itself
SIGKILL in the last one: ``sealed``, when every slice is encoded and sealed and the last frame has not left;
``stored``, when the broker's answer is there and the residuals are not committed yet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensorbus.bus.client import Client
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.residuals import Floats, ResidualPass, Residuals
from tensorbus.streaming.residual_files import FileResiduals

TOPIC = "models.feedback"


def message(number: int) -> dict[str, npt.NDArray[np.float32]]:
    """Number ``number`` of the sequence: several slices, then one."""
    random = np.random.default_rng(number)
    return {
        "long": random.normal(size=(1100, 1000)).astype(np.float32),
        "short": random.normal(size=1000).astype(np.float32),
    }


class FatalPass(ResidualPass):
    """A pass whose seal is the last thing that the process does."""

    def __init__(self, begun: ResidualPass) -> None:
        self._begun = begun

    def add_to(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        self._begun.add_to(spec, offset, values)

    def keep(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        self._begun.keep(spec, offset, values)

    def seal(self) -> None:
        self._begun.seal()
        die()


class Fatal(Residuals):
    """Residuals with which the process dies; real ones do the work."""

    def __init__(self, residuals: Residuals, moment: str) -> None:
        self._residuals = residuals
        self._moment = moment

    def begin(self, key: str) -> ResidualPass:
        begun = self._residuals.begin(key)
        return FatalPass(begun) if self._moment == "sealed" else begun

    def commit(self) -> None:
        if self._moment == "stored":
            die()
        self._residuals.commit()

    def unresolved(self) -> str | None:
        return self._residuals.unresolved()


def die() -> None:
    """No finally block, no closing of connections."""
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, folder: str, first: str, last: str, moment: str = "") -> None:
    """Publish some of the sequence."""
    residuals = FileResiduals(Path(folder))
    async with Client(url) as bus:
        for number in range(int(first), int(last) + 1):
            dying = moment and number == int(last)
            await bus.publish(
                TOPIC,
                message(number),
                "feedback | nf4",
                key=f"message-{number}",
                residuals=Fatal(residuals, moment) if dying else residuals,
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
