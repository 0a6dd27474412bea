"""The drill of docs/operating.md: a disk is lost in the midst of a federation, and a backup restored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import numpy as np

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.models import GlobalModel, newest_model
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client

PATIENCE = 60.0
JOB = JobSpec("sft", sites=2, rounds=4, quorum=2, deadline=600)
Process = asyncio.subprocess.Process


async def tensorbus(*arguments: str) -> bytes:
    """A command that ends well; what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", *arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return out


@contextlib.asynccontextmanager
async def serving(data: Path) -> AsyncGenerator[tuple[str, Process]]:
    """`tensorbus serve` on a directory; its address, and its process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--json", "--data", str(data)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield json.loads(await process.stdout.readline())["url"], process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def site(url: str, name: str) -> float:
    """Adds 1 in each round; the first weight of the final model."""
    async with Client(url) as bus:
        participant = Participant(bus, job=JOB.job, site=name)
        async for task in participant.rounds():
            model = cast("dict[str, Any]", await task.load())
            await task.submit({"w": model["w"] + 1}, num_examples=1)
        final = cast("dict[str, Any]", await participant.final.load())
        return float(final["w"][0])


@contextlib.asynccontextmanager
async def federation(url: str) -> AsyncGenerator[asyncio.Future[tuple[GlobalModel, float, float]]]:
    """An aggregator and two sites; they are ended where the block is left."""
    async with Client(url) as bus:
        aggregator = Aggregator(bus, JOB, init=None, listener=lambda event: None)
        working = asyncio.gather(aggregator.run(), site(url, "a"), site(url, "b"))
        try:
            yield working
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working


async def until_round(url: str, number: int) -> None:
    """Wait until the model of a round is there."""
    async with Client(url) as bus:
        while (model := await newest_model(bus, JOB.job)) is None or model.round < number:
            await asyncio.sleep(0.02)


async def test_a_federation_goes_on_from_a_backup(tmp_path: Path) -> None:
    """Only the copy is left; scrubbed and served, it has a model from which the job comes to its end."""
    data, copy = tmp_path / "data", tmp_path / "copies" / "tensorbus"
    async with asyncio.timeout(PATIENCE):
        async with serving(data) as (url, process):
            async with Client(url) as bus:
                await bus.publish("fl.sft.seed", {"w": np.zeros(50_000, np.float32)}, key="seed")
            async with federation(url):
                await until_round(url, 2)
                await tensorbus("backup", "--data", str(data), str(copy))
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(data)

        shutil.copytree(copy, data)
        report = json.loads(await tensorbus("scrub", "--data", str(data), "--json"))
        assert report["damaged"] == []
        assert report["messages"] >= 2
        async with serving(data) as (url, _), federation(url) as working:
            _, *finals = await working
    assert finals == [4.0, 4.0], "each of the four rounds has added 1"
