"""Law 1, for files and containers: publishing and receiving hold a constant number of frames.

Each test runs in a process of its own, whose peak (VmHWM) is reset before the transfer, with whatever the
process has to own already in place.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
BOUND = 64 * MIB

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's VmHWM")

WATCH = """
import re, sys
from pathlib import Path
import numpy as np
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.files import SafetensorsSink
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sources import open_source

def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

class Watch:
    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")
        self.before = kib("VmRSS")
    def __exit__(self, *_):
        print((kib("VmHWM") - self.before) * 1024)

def pieces(container, codec):
    encoder, pool = ContainerEncoder(open_source(container), Pipeline.parse(codec), {}), BufferPool(2)
    for frame in encoder.frames(pool.acquire):
        yield frame.head
        yield frame.payload
        if frame.buffer is not None:
            pool.release(frame.buffer)
"""

RECEIVE = """
path, codec, target = sys.argv[1:4]
with Watch():
    parser, checker = FrameParser(), MessageChecker()
    decoder = ContainerDecoder(checker, lambda envelope: SafetensorsSink(target, envelope.metadata))
    for piece in pieces(Path(path), codec):
        for frame in parser.feed(piece):
            checker.accept(frame)
            decoder.accept(frame)
    decoder.finish()
"""

FROM_MEMORY = """
codec = sys.argv[1]
state = {"w": np.ones(64 << 20, np.float32), "turned": np.ones((4096, 4096), np.float32).T}
with Watch():
    for piece in pieces(state, codec):
        pass
"""

SCAN = """
codec = sys.argv[1]
state = {"w": np.ones(64 << 20, np.float32)}
with Watch():
    parser, checker = FrameParser(keep_payload=False), MessageChecker()
    for piece in pieces(state, codec):
        for start in range(0, len(piece), 1 << 16):
            for frame in parser.feed(piece[start : start + (1 << 16)]):
                checker.accept(frame)
    checker.finish()
"""


def grown(script: str, *arguments: object) -> int:
    """Bytes by which the peak of a process rose over its size just before the transfer."""
    command = [sys.executable, "-c", WATCH + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def sparse(path: Path, count: int) -> Path:
    """A file of one float32 tensor, all zeros and nearly nothing on disk."""
    table = {"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * count)
    return path


@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_a_tensor_of_1_gib_goes_from_file_to_file(tmp_path: Path, codec: str) -> None:
    """Published and received in one process: both ends together stay within the bound of one."""
    target = tmp_path / "b.safetensors"
    assert grown(RECEIVE, sparse(tmp_path / "a.safetensors", 256 << 20), codec, target) <= BOUND
    assert target.stat().st_size > 1 << 30
    target.unlink()


@pytest.mark.parametrize("codec", ["none", "int8", "nf4-dq"])
def test_a_container_in_memory_is_published_beside_itself(codec: str) -> None:
    """A contiguous and a strided tensor: neither is copied whole."""
    assert grown(FROM_MEMORY, codec) <= BOUND


def test_a_scan_keeps_nothing() -> None:
    """The broker's side: 256 MiB of frames pass through 64 KiB chunks."""
    assert grown(SCAN, "none") <= 4 * MIB
