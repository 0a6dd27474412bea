"""Law 1 for the aggregator: one accumulator plus a constant, for 2 sites as for 20."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorbus.aggregator.headers import UpdateHeaders
from tensorbus.aggregator.job import JobSpec, update_key, updates_topic
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

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
