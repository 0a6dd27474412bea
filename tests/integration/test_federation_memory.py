"""Law 1 for the aggregator: one accumulator plus a constant, for 2 sites as for 20."""

# safetensors leaves parts of its functions untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key, updates_topic
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline

PROCESS = Path(__file__).with_name("killable_aggregator.py")
MIB = 1 << 20
ELEMENTS = 16 * MIB
"""64 MiB of fp32, most of it one tensor."""


async def peak(data: Path, sites: int, codec: str) -> tuple[float, float]:
    """MiB of an aggregator beyond its accumulator: just before the first update, and at most."""
    model = {"table": np.zeros(ELEMENTS - 4096, np.float32), "norm": np.ones(4096, np.float32)}
    pipeline: dict[str, object] = {"quantizer": {"name": codec}, "keep": []}
    spec = JobSpec("sft", sites=sites, rounds=1, quorum=sites, deadline=600, down=pipeline, up=pipeline)
    async with running_broker(data) as url, Client(url) as bus:
        await bus.publish("fl.sft.seed", model, codec=codec)
        model["table"] += 0.5
        for site in range(sites):
            headers = UpdateHeaders(f"site-{site}", 1, 10 + site).to_headers("sft")
            key = update_key("sft", 1, f"site-{site}")
            await bus.publish(updates_topic("sft"), model, codec=codec, headers=headers, key=key)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), url, json.dumps(spec.to_json()), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert len([entry for entry in told if entry.get("event") == "folded"]) == sites
    return told[-1]["resting"] / MIB - 64, told[-1]["peak"] / MIB - 64


@pytest.mark.parametrize("codec", ["nf4", "none"])
async def test_memory_is_one_accumulator_plus_a_constant_for_2_sites_as_for_20(
    tmp_path: Path, codec: str
) -> None:
    """The peak of the whole process, measured by the kernel; read with ``-s`` to see the figures."""
    few_resting, few = await peak(tmp_path / "few", 2, codec)
    many_resting, many = await peak(tmp_path / "many", 20, codec)
    print(
        f"\n{codec}: beyond the 64 MiB accumulator, 2 sites {few:.1f} MiB ({few_resting:.1f} before the first"
        f" update), 20 sites {many:.1f} MiB ({many_resting:.1f})"
    )
    assert many < few + 8
    for resting, most in ((few_resting, few), (many_resting, many)):
        assert most < resting + 64


async def peak_of_changes(data: Path, sites: int) -> float:
    """As ``peak``, with changes from a model that is itself in nf4; MiB beyond the accumulator, at most."""
    up, down = Pipeline.parse("delta | nf4").to_json(), Pipeline.parse("nf4").to_json()
    spec = JobSpec("sft", sites=sites, rounds=1, quorum=sites, deadline=600, down=down, up=up)
    model = {"table": np.zeros(ELEMENTS - 4096, np.float32), "norm": np.ones(4096, np.float32)}
    async with running_broker(data / "broker") as url, Client(url) as bus:
        await bus.publish("fl.sft.seed", model)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), url, json.dumps(spec.to_json()), stdout=asyncio.subprocess.PIPE
        )
        model["table"] += 0.5
        for site in range(sites):
            participant = Participant(bus, job="sft", site=f"site-{site}", state=data / "state")
            task = await anext(participant.rounds())
            assert await task.submit(model, num_examples=10 + site)
        out, _ = await process.communicate()
        assert process.returncode == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert len([entry for entry in told if entry.get("event") == "folded"]) == sites
    return told[-1]["peak"] / MIB - 64


async def test_changes_and_their_base_take_no_memory_of_their_own(tmp_path: Path) -> None:
    """The round's model is read from the broker when it is added, and is nowhere before that."""
    few, many = await peak_of_changes(tmp_path / "few", 2), await peak_of_changes(tmp_path / "many", 8)
    _, plain = await peak(tmp_path / "plain", 2, "nf4")
    print(f"\nchanges: 2 sites {few:.1f} MiB, 8 sites {many:.1f} MiB; values: {plain:.1f} MiB")
    assert many < few + 8
    assert few < plain + 24


SITE = """
import asyncio, os, sys
import numpy as np
from tensorbus.aggregator.participant import Participant
from tensorbus.bus.client import Client

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

async def main(url, state, base):
    model = {"table": np.ones(int(sys.argv[4]), np.float32)}
    async with Client(url) as bus:
        participant = Participant(bus, job="sft", site="a", base=base, state=state)
        async for task in participant.rounds():
            with open("/proc/self/clear_refs", "w") as reset:
                reset.write("5")
            before = status("VmRSS")
            await task.load(into=model)
            model["table"] += 0.01
            await task.submit(model, num_examples=1)
            print(status("VmHWM") - before, flush=True)

asyncio.run(main(*sys.argv[1:4]))
"""


async def test_a_site_holds_its_model_and_nothing_beside_it(tmp_path: Path) -> None:
    """Base, the round's model and the residuals are on disk: delta and feedback, both ways, take less beside
    the model of 64 MiB than that model does."""
    weights = tmp_path / "weights.safetensors"
    save_file({"table": np.random.default_rng(0).normal(size=ELEMENTS).astype(np.float32)}, weights)
    codec = Pipeline.parse("delta | feedback | nf4").to_json()
    spec = JobSpec("sft", sites=1, rounds=3, quorum=1, deadline=600, down=codec, up=codec)
    async with running_broker(tmp_path / "broker") as url, Client(url) as bus:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SITE, url, str(tmp_path / "state"), str(weights), str(ELEMENTS)),
            stdout=asyncio.subprocess.PIPE,
        )
        aggregator = Aggregator(
            bus, spec, init=weights, listener=lambda event: None, state=tmp_path / "other"
        )
        (out, _), _ = await asyncio.gather(process.communicate(), aggregator.run())
        assert process.returncode == 0
    grown = [float(line) for line in out.split()]
    print(f"\na site beyond its model, round by round: {', '.join(f'{each:.1f}' for each in grown)} MiB")
    assert len(grown) == 3
    assert max(grown) < 56
