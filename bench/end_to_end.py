"""A whole model through the bus: publisher → broker → receiver, three processes on loopback.

    python bench/end_to_end.py                          # Llama-3.2-1B in fp32, from memory and from a file
    python bench/end_to_end.py --model single-4gib      # one tensor of 4 GiB
    python bench/end_to_end.py --codecs nf4 --ways memory

``memory``: a state_dict in the publisher's memory is folded into an aggregator's fp32 accumulator.
``file``: a safetensors file is published and received as a safetensors file, never loaded at either end.
``follow``: as memory, but the receiver decodes while the publisher still sends, into tensors that it has.

Growth is the peak resident size (VmHWM) during the transfer beyond the resident size just before it, model
and accumulator being there already; of the broker it is its peak in all. Fresh processes make every row.
Time runs from the call of ``publish`` to the last value in its place. The last column counts it in copies:
the time that one copy of the same values in memory takes in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import cast

import llama
import numpy as np
import resident
import torch
from child import Process

from tensorbus.aggregator.bus_update import BusUpdate
from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.mean import Mean
from tensorbus.aggregator.updates import Contribution
from tensorbus.bus.client import Client
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import ItemSpec

TOPIC = "bench.models"
CODECS = ("none", "bf16", "fp16", "int8", "fp4", "nf4", "nf4-dq")
WAYS = ("memory", "file", "follow")
MIB = 1 << 20
TILE = 1 << 24

COLUMNS = (
    ("seconds", "seconds", 1),
    ("acked after", "acknowledged", 1),
    ("GB/s of fp32", "rate", 2),
    ("MiB on the wire", "wire", 2),
    ("% of fp32", "share", 2),
    ("publisher +MiB", "publisher", 1),
    ("broker MiB in all", "broker", 1),
    ("receiver +MiB", "receiver", 1),
    ("copies", "copies", 1),
)
"""Title, key and digits of each figure of a row."""
PEAKS = ("publisher", "broker", "receiver")

Shapes = dict[str, tuple[int, ...]]
Figures = dict[str, float]


def shapes_of(model: str) -> Shapes:
    """Tensor shapes of a benchmark model, all fp32."""
    if model == "single-4gib":
        return {"weight": (1 << 30,)}
    return dict(llama.shapes())


def size_of(shapes: Shapes) -> int:
    """Bytes of the model in fp32."""
    return sum(prod(shape) for shape in shapes.values()) * 4


def values(shapes: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of normally distributed weights, N(0, 0.02²), made from one tile of 64 MiB."""
    generator = torch.Generator().manual_seed(1)
    tile = torch.empty(TILE).normal_(0.0, 0.02, generator=generator)
    for index, (name, shape) in enumerate(shapes.items()):
        tensor = torch.empty(prod(shape))
        shift = (index * 4_099) % TILE
        for start in range(0, len(tensor), TILE):
            part = tensor[start : start + TILE]
            part.copy_(tile.roll(shift)[: len(part)] if shift else tile[: len(part)])
        yield name, tensor.view(shape)


# --- the two ends, each a process ------------------------------------------------------------------------


def tell(**said: object) -> None:
    """One line to the driver."""
    print(json.dumps(said), flush=True)


def wait_for_go() -> None:
    """Until the driver says so."""
    sys.stdin.readline()


async def publish(url: str, shapes: Shapes, codec: str, path: Path | None) -> None:
    """Publish the model from memory, or from ``path``."""
    container: object = path if path is not None else dict(values(shapes))
    async with Client(url) as bus:
        await bus.topics()
        tell(ready=True)
        await asyncio.to_thread(wait_for_go)
        before = resident.forget_peak()
        started = time.time()
        receipt = await bus.publish(TOPIC, container, codec=codec)
        tell(
            started=started,
            acknowledged=time.time(),
            growth=resident.peak() - before,
            wire=receipt.bytes_on_wire,
            original=receipt.bytes_original,
        )


async def receive(url: str, shapes: Shapes, way: str, path: Path | None) -> None:
    """Take one message: into an accumulator, into existing tensors, or into the file ``path``."""
    specs = [ItemSpec(name, dtype("float32"), shape) for name, shape in shapes.items()]
    mean = Mean(Layout(tuple(specs)), Workspace(Path.cwd)) if way == "memory" else None
    model = {name: np.ones(shape, np.float32) for name, shape in shapes.items()} if way == "follow" else None
    async with (
        Client(url) as bus,
        bus.subscribe(TOPIC, consumer="bench", follow=way == "follow") as deliveries,
    ):
        if mean is not None:
            await mean.reset()
        tell(ready=True)
        before = resident.forget_peak()
        delivery = await anext(deliveries)
        if mean is not None:
            await mean.add(BusUpdate(delivery), Contribution(delivery.id, "site", 1, 1.0, ""), lambda _: None)
        elif path is not None:
            await delivery.save(path)
        else:
            await delivery.load(into=model)
        finished = time.time()
        growth = resident.peak() - before
        await delivery.ack()
        tell(finished=finished, growth=growth)
    if mean is not None:
        await mean.aclose()


# --- the driver ------------------------------------------------------------------------------------------


@contextmanager
def broker(data: Path) -> Generator[tuple[Process, str]]:
    """A broker of its own for one row, and its URL."""
    process = Process("-m", "tensorbus", "serve", "--port", "0", "--data", str(data), "--json", quiet=True)
    try:
        yield process, str(process.hear()["url"])
    finally:
        process.end()
        shutil.rmtree(data, ignore_errors=True)


def row(model: str, way: str, codec: str, scratch: Path, source: Path) -> Figures:
    """One transfer."""
    with broker(scratch / "data") as (server, url):
        common = ("--url", url, "--model", model, "--ways", way, "--codecs", codec, "--scratch", str(scratch))
        receiver = Process(__file__, "--role", "receive", *common)
        publisher = Process(__file__, "--role", "publish", *common, "--source", str(source))
        try:
            receiver.hear()
            publisher.hear()
            publisher.go()
            sent = cast(Figures, publisher.hear())
            got = cast(Figures, receiver.hear())
        finally:
            publisher.end()
            receiver.end()
        seconds = got["finished"] - sent["started"]
        return {
            "seconds": seconds,
            "acknowledged": sent["acknowledged"] - sent["started"],
            "rate": sent["original"] / seconds / 1e9,
            "wire": sent["wire"] / MIB,
            "share": 100 * sent["wire"] / sent["original"],
            "publisher": sent["growth"] / MIB,
            "receiver": got["growth"] / MIB,
            "broker": resident.peak(server.pid) / MIB,
        }


def copy_seconds(size: int) -> float:
    """Seconds to copy ``size`` bytes from memory to memory, measured on 1 GiB of touched pages."""
    source, target = np.ones(1 << 28, np.float32), np.ones(1 << 28, np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return best * size / source.nbytes


def write_file(path: Path, shapes: Shapes) -> None:
    """The model as a safetensors file, written tensor by tensor."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * 4
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in values(shapes):
            tensor.numpy().tofile(file)


def drive(options: argparse.Namespace) -> None:
    """Measure every row and print the table."""
    shapes = shapes_of(options.model)
    size = size_of(shapes)
    scratch = Path(tempfile.mkdtemp(prefix="tensorbus-bench-", dir=options.scratch or None))
    source = scratch / "model.safetensors"
    results: list[dict[str, object]] = []
    try:
        if "file" in options.ways:
            write_file(source, shapes)
        copy = copy_seconds(size)
        print(f"{options.model}: {size / MIB:.2f} MiB of fp32; one copy of it takes {copy:.2f} s\n")
        print(f"| way | codec | {' | '.join(title for title, _, _ in COLUMNS)} |")
        print("|---|---" + "|---:" * len(COLUMNS) + "|", flush=True)
        for way in options.ways:
            for codec in options.codecs:
                runs = [row(options.model, way, codec, scratch, source) for _ in range(options.runs)]
                got = min(runs, key=lambda figures: figures["seconds"])
                got |= {name: max(figures[name] for figures in runs) for name in PEAKS}
                got["copies"] = got["seconds"] / copy
                results.append({"way": way, "codec": codec, **got})
                cells = [f"{got[key]:.{digits}f}" for _, key, digits in COLUMNS]
                print(f"| {way} | {codec} | {' | '.join(cells)} |", flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Driver, or one of the ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("llama-3.2-1b", "single-4gib"), default="llama-3.2-1b")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), help="any codec specification")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["memory", "file"])
    parser.add_argument("--runs", type=int, default=1, help="of each row; the quickest counts, and all peaks")
    parser.add_argument(
        "--scratch", default="", help="folder for the broker's data and the files; a real disk"
    )
    parser.add_argument("--json", default="", help="write the figures to this file too")
    parser.add_argument(
        "--role", choices=("drive", "publish", "receive"), default="drive", help=argparse.SUPPRESS
    )
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--source", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "drive":
        drive(options)
        return
    way, shapes = cast(str, options.ways[0]), shapes_of(options.model)
    torch.set_num_threads(1)
    if options.role == "publish":
        asyncio.run(
            publish(options.url, shapes, options.codecs[0], Path(options.source) if way == "file" else None)
        )
    else:
        target = Path(options.scratch) / "received.safetensors" if way == "file" else None
        asyncio.run(receive(options.url, shapes, way, target))


if __name__ == "__main__":
    main()
