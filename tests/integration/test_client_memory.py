"""Law 1 for the client: memory grows by a constant, however large a message or a tensor is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

LIMIT_MIB = 64
ELEMENTS = 1 << 28
"""Of the one fp32 tensor: 1 GiB."""

CHILD = """
import asyncio, sys
import numpy as np
from tensorbus.bus.client import Client

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

async def grown(work):
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark starts from the present size
    before = status("VmRSS")
    await work
    return status("VmHWM") - before

async def main(url, way, codec, *rest):
    async with Client(url) as bus:
        if way == "publish-file":
            work = bus.publish("models.large", rest[0], codec=codec)
        elif way == "publish-memory":
            work = bus.publish("models.large", {"w": np.ones(int(rest[0]), np.float32)}, codec=codec)
        else:
            message = await bus.fetch(rest[0])
            if way == "save":
                work = message.save(rest[1])
            elif way == "load":
                array = np.zeros(int(rest[1]), np.float32)
                array.fill(1)
                work = message.load(into={"w": array})
            else:
                work = slices(message)
        print(await grown(work))
        assert "torch" not in sys.modules

async def slices(message):
    async for _ in message.slices():
        pass

asyncio.run(main(*sys.argv[1:]))
"""


async def _grown(*arguments: str | Path) -> float:
    """MiB by which a client's peak exceeds what it held just before the transfer."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def _file_of_one_tensor(path: Path) -> Path:
    """A safetensors file that holds one tensor of zeros, and next to no disk space."""
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [ELEMENTS], "data_offsets": [0, 4 * ELEMENTS]}}
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * ELEMENTS)
    return path


@pytest.mark.parametrize("codec", ["none", "nf4"])
async def test_files_are_never_loaded(tmp_path: Path, codec: str) -> None:
    """One tensor of 1 GiB goes from a file to a file, and neither client grows by more than 64 MiB."""
    sent, got = _file_of_one_tensor(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    async with running_broker(tmp_path / "data") as url, Client(url) as bus:
        assert await _grown(url, "publish-file", codec, sent) < LIMIT_MIB
        (info,) = [info async for info in bus.messages()]
        assert info.original_bytes == 4 * ELEMENTS
        assert await _grown(url, "save", codec, info.id, got) < LIMIT_MIB
        assert got.stat().st_size > 4 * ELEMENTS
        got.unlink()  # pytest keeps the folders of the last few runs
        await bus.delete(info.id)


@pytest.mark.parametrize("codec", ["none", "int8"])
async def test_what_is_in_memory_is_not_there_twice(tmp_path: Path, codec: str) -> None:
    """One array of 1 GiB is published, loaded in place and folded with at most 64 MiB beside it."""
    async with running_broker(tmp_path / "data") as url, Client(url) as bus:
        assert await _grown(url, "publish-memory", codec, str(ELEMENTS)) < LIMIT_MIB
        (info,) = [info async for info in bus.messages()]
        assert await _grown(url, "load", codec, info.id, str(ELEMENTS)) < LIMIT_MIB
        assert await _grown(url, "slices", codec, info.id) < LIMIT_MIB
        await bus.delete(info.id)
