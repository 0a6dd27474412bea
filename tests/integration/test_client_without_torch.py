"""A receiver without torch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import torch

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

RECEIVE = """
import asyncio, sys
sys.modules["torch"] = None  # as if it were not installed
import numpy
from tensorbus import Client

async def main(url, message):
    async with Client(url) as bus:
        got = await (await bus.fetch(message)).load()
    assert type(got["w"]) is numpy.ndarray, type(got["w"])
    assert got["tied"].ctypes.data == got["w"].ctypes.data
    print(got["w"].tolist())

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_state_dict_arrives_as_arrays_where_there_is_no_torch(tmp_path: Path) -> None:
    """A torch state_dict is loaded by a numpy-only client: the same values, tied tensors still tied."""
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    weight = torch.tensor(values)
    async with running_broker(tmp_path) as url, Client(url) as bus:
        receipt = await bus.publish("models.tied", {"w": weight, "tied": weight})
        command = [sys.executable, "-c", RECEIVE, url, receipt.id]
        told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert told.stdout.strip() == str(values), told.stderr
