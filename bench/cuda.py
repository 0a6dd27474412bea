"""A tensor on a GPU to frames and back: coded there, against coded on the host.

    python bench/cuda.py                        # every codec that works on a GPU, 1 GiB of fp32
    python bench/cuda.py --mib 256 --threads 1  # smaller, and encoded by one thread

``device``: codes are made on the GPU and copied to the frames' pinned buffers; the other way, payloads are
copied to the GPU and decoded there. ``host``: values are copied slice by slice, and coded by the processor.
Frames are made as for a publish, checksums included, and dropped; payloads are decoded as they would be for
``load(into=…)``. GB/s of fp32, the best of several runs; ``copy`` is the values alone, through pinned memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tensorbus.codecs.base import SliceCodec
from tensorbus.codecs.chain import codec_of
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.serializers.mapping import MappingSink, items_of
from tensorbus.codecs.serializers.torch import TorchTensors
from tensorbus.streaming.ahead import buffers_for, default_threads
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.placing import Placer
from tensorbus.streaming.sources import ItemSource

CODECS = ("none", "bf16", "fp16", "int8", "fp4", "nf4")
RUNS = 5
TENSORS = 8


class HostTensors(TorchTensors):
    """Has everything coded on the host."""

    def device(self, array: torch.Tensor) -> str | None:
        return None


WAYS: dict[str, type[TorchTensors]] = {"device": TorchTensors, "host": HostTensors}


@dataclass(frozen=True)
class Slice:
    """One payload, and where it belongs."""

    codec: SliceCodec
    index: int
    offset: int
    count: int
    payload: bytes


def encoder(model: dict[str, torch.Tensor], codec: str, way: str) -> ContainerEncoder:
    """What makes the frames."""
    source = ItemSource("torch", items_of({**model}, WAYS[way]()))
    return ContainerEncoder(source, Pipeline.parse(codec), {})


def encode(model: dict[str, torch.Tensor], codec: str, way: str, threads: int) -> Callable[[], None]:
    """Make all frames and drop them."""
    making = encoder(model, codec, way)
    pool = BufferPool(buffers_for(threads), make=making.new_buffer)

    def run() -> None:
        for frame in making.frames(pool.acquire, threads):
            if frame.buffer is not None:
                pool.release(frame.buffer)

    return run


def payloads(model: dict[str, torch.Tensor], codec: str) -> list[Slice]:
    """All slices of the message."""
    making = encoder(model, codec, "host")
    index = {spec.name: at for at, spec in enumerate(making.entries)}
    slices: list[Slice] = []
    done = dict.fromkeys(index, 0)
    for frame in making.frames(lambda: memoryview(bytearray(1 << 20))):
        if frame.item is not None:
            spec = making.entries[index[frame.item]]
            count = frame.original_bytes // spec.dtype.itemsize
            slices.append(
                Slice(codec_of(spec), index[frame.item], done[frame.item], count, bytes(frame.payload))
            )
            done[frame.item] += count
    return slices


def decode(model: dict[str, torch.Tensor], codec: str, way: str, slices: list[Slice]) -> Callable[[], None]:
    """Decode all slices into the tensors of ``model``."""
    specs = encoder(model, codec, "host").entries

    def run() -> None:
        placer = Placer(MappingSink(WAYS[way](), model))
        for spec in specs:
            placer.begin(spec)
        for one in slices:
            placer.place(one.codec, specs[one.index], one.offset, one.count, memoryview(one.payload))
        placer.finish()

    return run


def copies(model: dict[str, torch.Tensor], back: bool) -> Callable[[], None]:
    """Only copy the values, to the host or back, through one pinned buffer of a tensor's size."""
    pinned = torch.empty_like(next(iter(model.values())), device="cpu", pin_memory=True)

    def run() -> None:
        for tensor in model.values():
            source, target = (pinned, tensor) if back else (tensor, pinned)
            target.copy_(source, non_blocking=True)

    return run


def rate(nbytes: int, work: Callable[[], None]) -> float:
    """GB/s."""
    best = float("inf")
    for _ in range(RUNS + 1):  # the first one warms up, and counts if it is the best all the same
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return nbytes / best / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the model in fp32")
    parser.add_argument("--threads", type=int, default=default_threads(), help="that encode")
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/cuda.py measures a CUDA device, and torch sees none here")
    elements = (options.mib << 20) // 4 // TENSORS
    model = {f"layer{at}": torch.empty(elements, device="cuda").normal_(0, 0.02) for at in range(TENSORS)}
    nbytes = sum(tensor.nbytes for tensor in model.values())
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {nbytes >> 20} MiB, "
        f"{options.threads} threads; GB/s of fp32"
    )
    columns = [f"{direction} {way}" for direction in ("encode", "decode") for way in WAYS]
    print(f"{'codec':8}" + "".join(f"{column:>15}" for column in columns))
    to_host, to_device = rate(nbytes, copies(model, False)), rate(nbytes, copies(model, True))
    for codec in options.codecs:
        slices = payloads(model, codec)
        rates = [rate(nbytes, encode(model, codec, way, options.threads)) for way in WAYS]
        rates += [rate(nbytes, decode(model, codec, way, slices)) for way in WAYS]
        print(f"{codec:8}" + "".join(f"{one:15.1f}" for one in rates), flush=True)
    print(f"{'copy':8}{to_host:15.1f}{'':15}{to_device:15.1f}")


if __name__ == "__main__":
    main()
