"""A federation under tokens, with the rights that docs/security.md gives to each."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Forbidden

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
RIGHTS = re.compile(r"--(admin|publish|subscribe) '?([\w.>*-]+)'?")


def token(data: Path, name: str) -> str:
    """The token that the page makes for ``name``."""
    command = re.search(rf"^tensorbus token create {name} ((?:.*\\\n)*.*)", PAGE, re.MULTILINE)
    assert command is not None, name
    rights = [part for right, topics in RIGHTS.findall(command[1]) for part in (f"--{right}", topics)]
    made = subprocess.run(
        [sys.executable, "-m", "tensorbus", "token", "create", name, "--data", str(data), *rights],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return made.stdout.split()[0]


async def test_each_can_do_its_part_and_a_site_no_more(tmp_path: Path) -> None:
    """Two rounds to the end; the site may not order anything, nor publish a model."""
    aggregators, sites, roots = (token(tmp_path, name) for name in ("aggregator", "site-a", "root"))
    async with (
        running_broker(tmp_path) as url,
        Client(url, aggregators) as above,
        Client(url, sites) as below,
        Client(url, roots) as root,
    ):
        await root.publish("fl.sft.seed", {"weight": np.zeros(4, np.float32)})
        spec = JobSpec(job="sft", sites=1, rounds=2, quorum=1, deadline=60, own_topics=True)
        aggregator = Aggregator(above, spec, init=None, listener=lambda _: None)
        participant = Participant(below, job="sft", site="site-a")

        async def take_part() -> dict[str, Any]:
            async for task in participant.rounds():
                model = cast("dict[str, Any]", await task.load())
                await task.submit({"weight": model["weight"] + 1}, num_examples=1)
            return cast("dict[str, Any]", await participant.final.load())

        _, final = await asyncio.wait_for(asyncio.gather(aggregator.run(), take_part()), 60)
        assert final["weight"].tolist() == [2.0] * 4
        for topic in ("fl.sft.model", "fl.sft.rounds", "fl.sft.updates", "fl.other.updates"):
            with pytest.raises(Forbidden):
                await below.publish(topic, {"weight": np.ones(4, np.float32)})
        left = [info.topic async for info in root.messages("fl.>")]
        assert left == ["fl.sft.model"] * len(left)
