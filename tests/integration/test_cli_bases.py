"""Changes and feedback on the command line: --base and --state, and what is said without them."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.streaming.base_files import open_base

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TENSORBUS_")}
COMMAND = [sys.executable, "-m", "tensorbus"]
CHANGE = "delta | nf4"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path / "data") as running:
        yield running


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What both ends have."""
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.random.default_rng(0).normal(size=(500, 600)).astype(np.float32)}, path)
    return path


@pytest.fixture
def tuned(tmp_path: Path, weights: Path) -> Path:
    """The same after some training."""
    path = tmp_path / "tuned.safetensors"
    change = np.random.default_rng(1).normal(size=(500, 600)).astype(np.float32)
    save_file({"w": load_file(weights)["w"] + 0.01 * change}, path)
    return path


async def run(url: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, "TENSORBUS_URL": url},
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_change_is_published_inspected_and_fetched(
    url: str, weights: Path, tuned: Path, tmp_path: Path
) -> None:
    """With --base at both ends; inspect needs none and shows the stages and the base's id."""
    code, out, err = await run(
        url, "publish", "models.x", tuned, "--codec", CHANGE, "--base", weights, "--json"
    )
    assert code == 0, err
    message = cast(str, json.loads(out)["id"])
    got = tmp_path / "got.safetensors"
    code, _, err = await run(url, "fetch", message, "-o", got, "--base", weights)
    assert code == 0, err
    assert np.abs(load_file(got)["w"] - load_file(tuned)["w"]).mean() < 0.002
    code, out, err = await run(url, "inspect", message)
    assert code == 0, err
    assert CHANGE in out
    assert open_base(weights).id in "".join(out.split())
    code, out, err = await run(
        url, "subscribe", "models.x", "--count", "1", "--save-dir", tmp_path / "all", "--base", weights
    )
    assert code == 0, err
    (saved,) = (tmp_path / "all").iterdir()
    assert saved.read_bytes() == got.read_bytes()


async def test_without_the_base_commands_end_with_exit_code_1_and_say_which_it_is(
    url: str, weights: Path, tuned: Path, tmp_path: Path
) -> None:
    """No traceback, no file; publishing without one says how to give it."""
    code, _, err = await run(url, "publish", "models.x", tuned, "--codec", CHANGE)
    assert (code, "base" in err, "Traceback" in err) == (1, True, False)
    async with Client(url) as bus:
        receipt = await bus.publish("models.x", tuned, codec=CHANGE, base=weights)
    for bases in ((), ("--base", tuned)):
        got = tmp_path / "got.safetensors"
        code, _, err = await run(url, "fetch", receipt.id, "-o", got, *bases)
        assert code == 1
        assert open_base(weights).id in err
        assert "Traceback" not in err
        assert not got.exists()


async def test_feedback_needs_a_folder_and_goes_on_from_it(url: str, tuned: Path, tmp_path: Path) -> None:
    """Without --state it is a mistake in the command; with it, each call adds what the last one left out."""
    arguments = ("publish", "models.x", tuned, "--codec", "feedback | nf4")
    code, _, err = await run(url, *arguments)
    assert (code, "--state" in err) == (2, True)
    for _ in range(3):
        code, _, err = await run(url, *arguments, "--state", tmp_path / "state")
        assert code == 0, err
    wanted = load_file(tuned)["w"]
    async with Client(url) as bus:
        got: list[np.ndarray] = []
        async for info in bus.messages("models.x"):
            loaded = await (await bus.fetch(info.id)).load()
            got.append(np.asarray(cast("dict[str, np.ndarray]", loaded)["w"]))
    assert np.abs(sum(got) - 3 * wanted).mean() < 1.5 * np.abs(got[0] - wanted).mean()


async def test_an_aggregator_sends_changes_from_its_base(url: str, weights: Path, tuned: Path) -> None:
    """--base beside --init: the first model itself is a change."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("aggregate", "--url", url, "--job", "sft", "--sites", "1", "--rounds", "1", "--json"),
        *("--down", CHANGE, "--up", CHANGE, "--init", str(tuned), "--base", str(weights)),
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    async with asyncio.timeout(60), Client(url) as bus:
        participant = Participant(bus, job="sft", site="a", base=weights)
        async for task in participant.rounds():
            assert 0.1 < task.model.info.bytes / (4 * 500 * 600) < 0.15
            await task.submit(await task.load(), num_examples=1)
        final = cast("dict[str, np.ndarray]", await participant.final.load())
        await process.communicate()
    assert process.returncode == 0
    assert np.abs(np.asarray(final["w"]) - load_file(tuned)["w"]).mean() < 0.002


async def test_an_aggregator_without_a_base_says_what_to_give(url: str) -> None:
    """Exit code 1, before it waits for a model."""
    command = ("aggregate", "--job", "sft", "--sites", "1", "--rounds", "1", "--down", CHANGE)
    code, _, err = await run(url, *command)
    assert code == 1
    assert "--base or --init, or --state" in err
