"""A whole round of a federation: broker, aggregator and sites, each a process, on loopback.

    python bench/federation.py                                    # Llama-3.2-1B in fp32, 4 sites
    python bench/federation.py --model llama-380m --rows nf4 'nf4 deterministic'
    python bench/federation.py --quick                            # seconds, to see that it works
    python bench/federation.py --memory --plot docs/images/aggregator-memory.png

A row is a codec, then, if wanted, ``file`` (the accumulator is a memory-mapped file) or ``deterministic``. A
codec goes both ways, but for changes: their models go down in nf4. A round runs from when its model is sealed
to when the next one is; sites download and decode the model, send an update from a file they share, and do no
training. *Model decoded* is when the last site had the model; they follow it while it is published.
*After the last* is the part of the round after the broker acknowledged the last update: what is left to fold,
and the new model. *Reads* counts it in reads: the time that one ``numpy.sum`` over as many bytes as the
accumulator has takes in the same run.

Memory: of the broker its peak (VmHWM) in all; of the aggregator its peak beyond the accumulator, in which the
interpreter is counted (anonymous memory only where the accumulator is a file); of sites the largest growth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import resident
from child import Process
from wholerounds import memory, models
from wholerounds.processes import Memory, aggregator, broker, settled, until

from tensorbus.aggregator.job import check_name

JOB = check_name("bench", "job")
MIB = 1 << 20
ROWS = (
    "none",
    "bf16",
    "int8",
    "nf4",
    "delta | nf4",
    "delta | rotate | lloyd:2",
    "nf4 file",
    "nf4 deterministic",
)
SITE = Path(__file__).with_name("wholerounds") / "site.py"
COLUMNS = (
    ("round s", "seconds", 1),
    ("model decoded after s", "loaded", 2),
    ("after the last s", "last", 2),
    ("of it folding", "folding", 2),
    ("reads", "reads", 1),
    ("MiB up, each", "wire", 1),
    ("broker MiB in all", "broker", 1),
    ("aggregator MiB besides", "aggregator", 1),
    ("site +MiB", "site", 1),
)
SHARE = {
    "none": 1.0,
    "bf16": 0.5,
    "int8": 0.26,
    "nf4": 0.15,
    "delta | nf4": 0.15,
    "delta | rotate | lloyd:2": 0.15,
}
"""Of fp32, at most; what is needed of the disk is told before it is full."""

Figures = dict[str, float]


def read_seconds(size: int) -> float:
    """Seconds to sum ``size`` bytes of float32, measured on 512 MiB; the best of three."""
    values = np.ones(1 << 27, np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - started)
    return best * size / values.nbytes


def needed(row: str, size: int, sites: int) -> int:
    """Bytes of disk: two models and the updates at the broker, the sites' copies, an accumulator."""
    codec, kind = parse(row)
    copies = sites if codec.startswith("delta") else 0
    return int(size * (SHARE.get(codec, 1.0) * (sites + 2) + copies + (kind == "file")))


def parse(row: str) -> tuple[str, str]:
    """Codec, and "file", "deterministic" or nothing."""
    for kind in ("file", "deterministic"):
        if row.endswith(f" {kind}"):
            return row.removesuffix(f" {kind}"), kind
    return row, ""


def measure(row: str, sites: int, size: int, scratch: Path, first: Path, trained: Path) -> Figures:
    """One round."""
    codec, kind = parse(row)
    down = "nf4" if codec.startswith("delta") else codec
    options = ["--sites", str(sites), "--init", str(first), "--up", codec, "--down", down]
    options += ["--state", str(scratch / "aggregator")]
    options += {"file": ["--accumulator", "file"], "deterministic": ["--deterministic"], "": []}[kind]
    accumulator = 4 * size if kind == "deterministic" else size
    children: list[Process] = []
    with broker(scratch / "data") as (server, url):
        try:
            for at in range(sites):
                state = scratch / f"site-{at}"
                children.append(Process(str(SITE), url, f"s{at}", str(state), str(trained)))
            for child in children:
                child.hear()
            leader = aggregator(url, JOB, options)
            seen = Memory(leader.pid)
            children.append(leader)
            began = until(leader, "published", 1)
            told = [child.hear() for child in children[:sites]]
            closed = until(leader, "closing", 1)
            ended = until(leader, "published", 2)
            seen.end()
            held = resident.peak(server.pid)
        finally:
            for child in children:
                child.end()
    for folder in ("data", "aggregator", *(f"site-{at}" for at in range(sites))):
        shutil.rmtree(scratch / folder, ignore_errors=True)
    last = ended - max(site["sealed"] for site in told)
    loaded = {} if codec.startswith("delta") else {"loaded": max(site["loaded"] for site in told) - began}
    return loaded | {
        "seconds": ended - began,
        "folding": closed - max(site["sealed"] for site in told),
        "last": last,
        "reads": last / read_seconds(accumulator),
        "wire": told[0]["wire"] / MIB,
        "broker": held / MIB,
        "aggregator": (seen.anonymous if kind == "file" else seen.peak - accumulator) / MIB,
        "site": max(site["growth"] for site in told) / MIB,
    }


def rounds(options: argparse.Namespace, scratch: Path) -> list[dict[str, object]]:
    """Every row, printed as it comes."""
    shapes = models.shapes_of(options.model)
    size = models.size_of(shapes)
    first, trained = scratch / "first.safetensors", scratch / "trained.safetensors"
    models.write(first, shapes)
    if any(row.startswith("delta") for row in options.rows):
        models.write(trained, shapes, trained=True)
    else:
        trained = first  # what is sent whole takes its time whatever the values are
    print(f"{options.model}: {size / MIB:.0f} MiB of fp32, {options.sites} sites; ", end="")
    print(f"reading as much once takes {read_seconds(size):.2f} s\n")
    print(f"| codec | {' | '.join(title for title, _, _ in COLUMNS)} |")
    print("|---" + "|---:" * len(COLUMNS) + "|", flush=True)
    found: list[dict[str, object]] = []
    for row in options.rows:
        name = row.replace("|", "\\|")
        lacking = needed(row, size, options.sites) - shutil.disk_usage(scratch).free
        if lacking > 0:
            print(f"| {name} | the disk has {lacking / MIB:.0f} MiB too little |", flush=True)
            continue
        settled()
        got = measure(row, options.sites, size, scratch, first, trained)
        found.append({"model": options.model, "sites": options.sites, "row": row, **got})
        cells = [f"{got[key]:.{digits}f}" if key in got else "–" for _, key, digits in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return found


def memories(options: argparse.Namespace, scratch: Path) -> list[memory.Point]:
    """The grid of reducers, models and numbers of updates."""
    counts = (2, 8) if options.quick else (2, 8, 32, 128)
    points: list[memory.Point] = []
    for reducer in options.reducers:
        for mib in (16,) if options.quick else options.mib:
            points += memory.measure(reducer, mib, counts, options.codec, scratch)
    return points


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=models.MODELS, default=models.MODELS[0])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="the smallest model, two sites and two rows")
    parser.add_argument("--memory", action="store_true", help="the aggregator's memory instead of rounds")
    parser.add_argument("--reducers", nargs="+", default=["mean", "median"], help="with --memory")
    parser.add_argument("--mib", nargs="+", type=int, default=[16, 64, 128], help="models, with --memory")
    parser.add_argument("--codec", default="nf4", help="with --memory")
    parser.add_argument("--plot", type=Path, help="with --memory: a PNG")
    parser.add_argument("--scratch", help="folder for everything that is written; a real disk")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if options.quick:
        options.model, options.sites, options.rows = "llama-80m", 2, ["nf4", "delta | nf4"]
    with tempfile.TemporaryDirectory(prefix="tensorbus-bench-", dir=options.scratch) as name:
        if options.memory:
            points = memories(options, Path(name))
            print(memory.table(points))
            if options.plot:
                memory.plot(points, options.plot)
            found = memory.to_json(points)
        else:
            found = rounds(options, Path(name))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
