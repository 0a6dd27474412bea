"""`tensorbus aggregate`: a process that is started, stopped, started again, and ends with the job."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

PATIENCE = 60.0
Process = asyncio.subprocess.Process


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Client]:
    """A real broker and a client of it."""
    async with running_broker(tmp_path / "broker") as url, Client(url) as client:
        yield client


class Net(torch.nn.Module):
    """An embedding whose head is tied, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(64, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.head = torch.nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight


async def tensorbus(*arguments: str) -> Process:
    """The command, with its output to be read."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tensorbus", *arguments, stdout=pipe, stderr=pipe
    )


async def until(process: Process, event: str) -> list[dict[str, Any]]:
    """The events up to the next one of this name."""
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["event"] != event:
        line = await process.stdout.readline()
        assert line, f"it ended before {event!r}: {seen}"
        seen.append(json.loads(line))
    return seen


async def test_a_job_from_a_safetensors_file_survives_a_stop_and_ends_with_exit_code_0(
    bus: Client, tmp_path: Path
) -> None:
    """save_model keeps another name of the tied tensor than state_dict sends; SIGTERM comes in mid-round."""
    net = Net()
    save_model(net, str(tmp_path / "model.safetensors"))
    command = ["aggregate", "--url", bus.url, "--job", "sft", "--sites", "2", "--rounds", "2", "--json"]
    command += [
        "--init",
        str(tmp_path / "model.safetensors"),
        "--down",
        "int8",
        "--up",
        "nf4",
        "--keep",
        "*norm*",
    ]

    async def site(name: str, step: float) -> Net:
        model = Net()
        async with Client(bus.url) as mine:
            participant = Participant(mine, job="sft", site=name)
            async for task in participant.rounds():
                model.load_state_dict(cast("dict[str, torch.Tensor]", await task.load()))
                with torch.no_grad():
                    model.norm.bias.add_(step)
                await task.submit(model.state_dict(), num_examples=5, metrics={"loss": step})
            await participant.final.load(into=model)
        return model

    async with asyncio.timeout(PATIENCE):
        first = await tensorbus(*command)
        told = await until(first, "round")
        assert [entry["event"] for entry in told][-2:] == ["published", "round"]
        a = asyncio.create_task(site("a", 1.0))
        await until(first, "folded")
        first.send_signal(signal.SIGTERM)
        _, err = await first.communicate()
        assert first.returncode == 130
        assert b"start it again" in err

        second = await tensorbus(*command)
        b = asyncio.create_task(site("b", 3.0))
        told = await until(second, "done")
        assert await second.wait() == 0
    assert told[0]["event"] == "resumed"
    closing = [entry for entry in told if entry["event"] == "closing"]
    assert [entry["metrics"] for entry in closing] == [{"loss": 2.0}, {"loss": 2.0}]
    for model in (await a, await b):
        assert model.embed.weight.data_ptr() == model.head.weight.data_ptr()
        assert torch.allclose(model.norm.bias, torch.full((64,), 4.0))
        difference = (model.embed.weight - net.embed.weight).abs().mean()
        assert 0 < difference < 0.3


async def test_a_person_reads_what_happens_in_lines(bus: Client) -> None:
    """Waiting for a first model, a refused update, the rounds, the end."""
    process = await tensorbus("aggregate", "--url", bus.url, "--job", "x", "--sites", "1", "--rounds", "1")
    async with asyncio.timeout(PATIENCE):
        await bus.publish("fl.x.seed", {"w": np.zeros(1000, np.float32)})
        task = await anext(Participant(bus, job="x", site="a").rounds())
        await task.submit({"w": np.full(1000, np.nan, np.float32)}, num_examples=1)
        lines: list[bytes] = []
        assert process.stdout is not None
        while not lines or b"refused" not in lines[-1]:
            lines.append(await process.stdout.readline())
        await task.submit({"w": np.ones(1000, np.float32)}, num_examples=7, metrics={"loss": 0.25})
        out, _ = await process.communicate()
    assert process.returncode == 0
    text = (b"".join(lines) + out).decode()
    assert "waiting for one on topic fl.x.seed" in text
    assert "round 1 of 1: waiting for 1 sites (1 are enough after 3600.0 s)" in text
    assert "the update of a is refused: non-finite-values" in text
    assert "+ a: 7 examples, loss 0.25; 1 of 1 in" in text
    assert "model 2 (the final one) is sealed: 3.91 KiB as" in text
    assert "done: the final model is message" in text


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--rounds", "1", "--sites", "2"], 2, "--job"),
        (["--job", "a", "--rounds", "0", "--sites", "2"], 2, "--rounds"),
        (["--job", "a", "--rounds", "1", "--sites", "2", "--quorum", "3"], 1, "no round could close"),
        (["--job", "a.b", "--rounds", "1", "--sites", "2"], 1, "is no name"),
        (["--job", "a", "--rounds", "1", "--sites", "2", "--up", "zip"], 1, "zip"),
        (["--job", "a", "--rounds", "1", "--sites", "2", "--init", "absent.safetensors"], 2, "absent"),
        (["--help"], 0, "fl.JOB.model"),
    ],
)
async def test_what_cannot_work_is_said_before_anything_happens(
    arguments: list[str], code: int, why: str
) -> None:
    """Exit code 2 for wrong usage, 1 for a job that makes no sense; no broker is needed to find out."""
    process = await tensorbus("aggregate", *arguments)
    out, err = await process.communicate()
    assert process.returncode == code, err
    assert why in (out + err).decode()
