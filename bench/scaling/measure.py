"""What one machine takes for a message: a real broker process, a real client, a real reducer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from tensorbus.aggregator.bus_update import BusUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import Contribution
from tensorbus.bus.client import Client
from tensorbus.codecs.bases import Base
from tensorbus.streaming.base_files import open_base

from .settings import Service

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]

TOPIC = "bench.scale"
SMALL = 20
"""Messages of next to nothing whose mean is the fixed part."""


def measure(codecs: list[str], megabytes: int, repeats: int = 3) -> list[Service]:
    """The service times of each codec, from messages of ``megabytes`` of fp32; the median of ``repeats``."""
    with tempfile.TemporaryDirectory() as folder, _broker(Path(folder)) as url:
        return asyncio.run(_measure(url, codecs, megabytes, repeats))


async def _measure(url: str, codecs: list[str], megabytes: int, repeats: int) -> list[Service]:
    random = np.random.default_rng(0)
    base = {f"layer.{index}": _normal(random, megabytes) for index in range(4)}
    values: Arrays = {
        name: array + np.float32(0.001) * _normal(random, megabytes) for name, array in base.items()
    }
    size = sum(array.nbytes for array in values.values())
    found: list[Service] = []
    held = open_base(base)
    async with Client(url, bases=[held]) as bus:
        for codec in codecs:
            given = held if codec.startswith("delta") else None
            await _once(bus, values, codec, given)  # what comes first also pays for memory and imports
            runs = [await _once(bus, values, codec, given) for _ in range(repeats)]
            fixed = [sum((await _once(bus, {"one": np.ones(64)}, "none", None))[1:]) for _ in range(SMALL)]
            wire, publish, fold = (median(column) / size for column in zip(*runs, strict=True))
            found.append(Service(codec, wire, publish * 1e9, fold * 1e9, median(fixed)))
    return found


async def _once(bus: Client, values: Arrays, codec: str, base: Base | None) -> tuple[int, float, float]:
    """Bytes on the wire, and seconds to publish and to fold one message."""
    began = time.perf_counter()
    receipt = await bus.publish(TOPIC, values, codec=codec, base=base)
    published = time.perf_counter() - began
    message = await bus.fetch(receipt.id)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(lambda: Path(folder))
        reducer = ReducerSpec.parse("mean").build(Layout.of(message.manifest), workspace)
        await reducer.reset()
        about = "" if base is None else base.id
        began = time.perf_counter()
        await reducer.add(BusUpdate(message), Contribution(receipt.id, "site", 1, 1.0, about), lambda _: None)
        folded = time.perf_counter() - began
        await reducer.aclose()
    await bus.delete(receipt.id)
    return receipt.bytes_on_wire, published, folded


def _normal(random: np.random.Generator, megabytes: int) -> Floats:
    return random.standard_normal(megabytes * 250_000 // 4, dtype=np.float32)


@contextmanager
def _broker(folder: Path) -> Generator[str]:
    """A broker of its own process."""
    command = [sys.executable, "-m", "tensorbus", "serve", "--data", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait()
