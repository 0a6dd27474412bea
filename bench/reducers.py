"""Seconds and memory of each reducer for one round: K updates of N MiB, read from files of frames.

    python bench/reducers.py [--updates 4] [--mib 32] [--codec none] [--only median,krum:0]

Each reducer has a process of its own. ``add`` is the time of all updates as they come (check or sum),
``close`` that from the last update to the result; ``grown`` is by how much the process grew from when it was
ready to its peak, the accumulator (N MiB in float32) included unless ``--accumulator file`` keeps it on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tensorbus.aggregator.encoded_update import EncodedUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import Contribution, Update
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.serializers.numpy import NumpySerializer
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.frames import FRAME_BYTES
from tensorbus.streaming.sources import ItemSource

REDUCERS = (
    "mean",
    "clip:1e3 | mean",
    "median",
    "trimmed:0.25",
    "krum:0",
    "multi-krum:0",
    "fedavgm",
    "fedadam",
)
BASE = "message:" + "0" * 64


def write(path: Path, mib: int, codec: str, seed: int) -> None:
    """A message of tensors of 4 MiB in float32."""
    random = np.random.default_rng(seed)
    values = {f"layer.{at}": random.standard_normal(1 << 20, np.float32) for at in range(mib // 4)}
    encoder = ContainerEncoder(
        ItemSource("numpy", NumpySerializer().items(values)), Pipeline.parse(codec), {}
    )
    buffer = memoryview(bytearray(FRAME_BYTES))
    with path.open("wb") as file:
        for frame in encoder.frames(lambda: buffer):
            file.write(frame.head)
            file.write(frame.payload)


def resident(field: str) -> float:
    """MiB of this process, by ``VmRSS`` or ``VmHWM``."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


async def round_of(text: str, folder: Path, updates: int, accumulator: str) -> dict[str, object]:
    """One round in this process."""
    model = EncodedUpdate(folder / "model.frames")
    files = [EncodedUpdate(folder / f"{at}.frames") for at in range(updates)]
    workspace = Workspace(lambda: folder, accumulator=accumulator)
    reducer = ReducerSpec.parse(text).build(Layout.of(model.manifest), workspace)

    async def find(base: str) -> Update:
        return model

    before = resident("VmRSS")
    await reducer.begin(1, find)
    await reducer.reset()
    begun = time.perf_counter()
    for at, update in enumerate(files):
        await reducer.add(update, Contribution(update.id, str(at), 1, 1.0 + at, BASE), lambda _: None)
    added = time.perf_counter()
    await reducer.close(model, find)
    closed = time.perf_counter()
    grown = resident("VmHWM") - before
    await reducer.aclose()
    return {"reducer": text, "add_s": added - begun, "close_s": closed - added, "grown_mib": grown}


def main() -> None:
    """Print a table, and the same as JSON lines with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--codec", default="none")
    parser.add_argument("--accumulator", choices=("memory", "file"), default="memory")
    parser.add_argument("--only", default=",".join(REDUCERS), help="reducers, with commas in between")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("REDUCER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        text, folder = args.child
        print(json.dumps(asyncio.run(round_of(text, Path(folder), args.updates, args.accumulator))))
        return
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "model.frames", args.mib, "none", 0)
        for at in range(args.updates):
            write(Path(name) / f"{at}.frames", args.mib, args.codec, at + 1)
        if not args.json:
            print(
                f"{args.updates} updates of {args.mib} MiB, {args.codec}, accumulator in {args.accumulator}"
            )
            print(f"{'reducer':<20}{'add s':>8}{'close s':>9}{'grown MiB':>11}")
        for text in args.only.split(","):
            options = ["--updates", str(args.updates), "--accumulator", args.accumulator]
            command = [sys.executable, __file__, *options, "--child", text, name]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            if args.json:
                print(json.dumps(found))
            else:
                print(
                    f"{text:<20}{found['add_s']:>8.2f}{found['close_s']:>9.2f}{found['grown_mib']:>11.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
