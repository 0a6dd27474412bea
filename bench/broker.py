"""Brokers side by side: publisher → broker → subscriber, three processes on loopback, all in one run.

    python bench/broker.py                      # everything; about a quarter of an hour
    python bench/broker.py --quick              # small and short: whether it works, not how fast
    python bench/broker.py --only Tensorbus raw --json figures.json

Bulk: one message of 1 GiB in frames of 1 MiB (elsewhere: 1024 messages of 1 MiB). Time runs from the first
byte sent until both are true: the subscriber has the last byte, and the publisher its last acknowledgement.
Small: messages of 1 KiB, up to ``--window`` of them unacknowledged, and once more at a steady rate; latency
is from the call that sends one to the moment in which the subscriber has it.

Every row gets fresh processes and an empty folder; rounds go through all rows in turn, and medians count. CPU
is the broker's own, its memory the largest seen (RSS, looked at ten times a second).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

from brokers import connections, meter
from brokers.child import Child, Said
from brokers.load import MIB, Load, median
from brokers.servers import Missing, Running
from brokers.systems import SYSTEMS, System, fresh_folder

GIB = 1 << 30
PIECES_WINDOW = 32
"""Messages of 1 MiB that may be unacknowledged where a large message is sent as such."""
RATE = 500.0
"""Small messages a second in the steady run."""

Figures = dict[str, float]
Results = dict[str, list[Figures] | str]


# --- one row ---------------------------------------------------------------------------------------------


def end(role: str, system: System, load: Load) -> Child:
    """One end of a row as a process."""
    said = json.dumps(asdict(load))
    return Child([sys.executable, __file__, "--role", role, "--ends", system.ends, "--load", said])


def run_ends(system: System, load: Load, kind: str) -> tuple[Said, Said]:
    """What the publisher and the subscriber say when both are through."""
    with end(f"subscribe{kind}", system, load) as subscriber:
        subscriber.hear()
        with end(f"publish{kind}", system, load) as publisher:
            publisher.hear()
            publisher.go()
            return publisher.hear(), subscriber.hear()


def bulk(system: System, server: Running, options: argparse.Namespace, folder: Path) -> Figures:
    """One large message."""
    size = int(options.mib) * MIB
    load = Load(
        server.address,
        size,
        window=PIECES_WINDOW,
        follow=system.follow,
        certificate=str(folder / "ca.pem") if system.tls else "",
    )
    before = meter.cpu_seconds(server.pid)
    with meter.Peak(server.pid) as peak:
        sent, got = run_ends(system, load, "")
        used = meter.cpu_seconds(server.pid) - before
    if cast("int", got["received"]) < size:
        raise RuntimeError(f"{system.name}: {got['received']} of {size} bytes arrived")
    began, acknowledged, arrived = (
        cast("float", each) for each in (sent["started"], sent["finished"], got["finished"])
    )
    seconds = max(acknowledged, arrived) - began
    return {
        "rate": size / seconds / 1e9,
        "acknowledged": acknowledged - began,
        "arrived": arrived - began,
        "cpu": used / (size / 1e9),
        "publisher": cast("float", sent["cpu"]) / (size / 1e9),
        "subscriber": cast("float", got["cpu"]) / (size / 1e9),
        "rss": peak.rss / MIB,
        "pss": peak.pss / MIB,
    }


def small(system: System, server: Running, options: argparse.Namespace, _folder: Path) -> Figures:
    """Many small messages, as fast as they are taken."""
    return _small(system, server, Load(server.address, 1024, int(options.count), int(options.window)))


def steady(system: System, server: Running, options: argparse.Namespace, _folder: Path) -> Figures:
    """Small messages at a steady rate."""
    count = min(int(options.count), int(RATE * 10))
    return _small(system, server, Load(server.address, 1024, count, int(options.window), RATE))


def _small(system: System, server: Running, load: Load) -> Figures:
    before = meter.cpu_seconds(server.pid)
    with meter.Peak(server.pid) as peak:
        sent, got = run_ends(system, load, "_small")
        used = meter.cpu_seconds(server.pid) - before
    pairs = zip(cast("list[float]", sent["sent"]), cast("list[float]", got["got"]), strict=True)
    delays = sorted(arrived - left for left, arrived in pairs)
    began = cast("float", sent["started"])
    seconds = max(cast("float", sent["finished"]), cast("float", got["finished"])) - began
    return {
        "rate": load.count / seconds,
        "p50": 1000 * delays[len(delays) // 2],
        "p99": 1000 * delays[int(len(delays) * 0.99)],
        "cpu": 1000 * used / load.count,
        "rss": peak.rss / MIB,
        "pss": peak.pss / MIB,
    }


# --- all rows --------------------------------------------------------------------------------------------

Measure = Callable[[System, Running, argparse.Namespace, Path], Figures]


def touch_memory(folder: Path, mib: int) -> None:
    """Write ``mib`` MiB to a file and remove it: what is measured then meets memory that this machine has.

    A virtual machine gets memory from its host when it is first touched, and gives it back when it was free
    for a while. Getting it costs up to ten times what it costs to write to the page cache, whoever writes.
    """
    path = folder / "touched"
    piece = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def measure(systems: list[System], what: Measure, options: argparse.Namespace) -> Results:
    """``options.rounds`` rounds through ``systems``; a row that cannot be measured says why."""
    results: Results = {system.name: [] for system in systems}
    for number in range(int(options.rounds)):
        for system in systems:
            rows = results[system.name]
            if isinstance(rows, str):
                continue
            try:
                with fresh_folder(options.scratch) as folder, system.start(folder) as server:
                    if what is bulk:
                        touch_memory(folder, 3 * int(options.mib))
                    figures = what(system, server, options, folder)
            except (Missing, RuntimeError, OSError) as problem:
                results[system.name] = str(problem).strip().splitlines()[-1][:120] if str(problem) else "?"
                print(f"  {system.name}: {problem}", file=sys.stderr, flush=True)
                continue
            rows.append(figures)
            shown = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"  {what.__name__} {number + 1}: {system.name}: {shown}", file=sys.stderr, flush=True)
            time.sleep(float(options.pause))
    return results


def middle(results: Results, name: str) -> Figures | None:
    """Medians of a row."""
    rows = results.get(name)
    if not rows or isinstance(rows, str):
        return None
    return {key: median([row[key] for row in rows]) for key in rows[0]}


def table(results: Results, columns: tuple[tuple[str, str, int], ...], limit: str = "") -> None:
    """One Markdown table: title, key and digits of each column; ``limit`` is the row that others are held
    against."""
    whole = middle(results, limit)
    ratio = " of the limit |" if whole else ""
    print(f"| | {' | '.join(title for title, _, _ in columns)} |{ratio}")
    print("|---" + "|---:" * (len(columns) + bool(whole)) + "|")
    for name, rows in results.items():
        got = middle(results, name)
        if got is None:
            print(f"| {name} | {rows if isinstance(rows, str) else 'not measured'} |")
            continue
        cells = [f"{got[key]:.{digits}f}" for _, key, digits in columns]
        if whole:
            cells.append(f"{got['rate'] / whole['rate']:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def connection_costs(options: argparse.Namespace) -> Figures:
    """Bytes a connection and an upload."""
    tensorbus = next(system for system in SYSTEMS if system.ends == "tensorbus_raw" and system.small)
    count = int(options.connections)
    figures: Figures = {}
    for name, cost in (("idle", connections.idle), ("upload", connections.uploads)):
        with fresh_folder(options.scratch) as folder, tensorbus.start(folder) as server:
            figures[name] = cost(server, count)
    print(f"Memory of the broker, of {count} at a time: {figures['idle'] / 1024:.1f} KiB an idle connection,")
    print(f"{figures['upload'] / 1024:.1f} KiB an upload that has sent half of its 2 MiB.\n", flush=True)
    return figures


BULK = (
    ("GB/s", "rate", 2),
    ("acknowledged after, s", "acknowledged", 2),
    ("arrived after, s", "arrived", 2),
    ("broker CPU s/GB", "cpu", 2),
    ("publisher's", "publisher", 2),
    ("subscriber's", "subscriber", 2),
    ("broker RSS MiB", "rss", 0),
)
SMALL = (
    ("messages/s", "rate", 0),
    ("p50 ms", "p50", 2),
    ("p99 ms", "p99", 2),
    ("broker CPU ms/message", "cpu", 3),
    ("broker RSS MiB", "rss", 0),
)


def drive(options: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    chosen = [
        system
        for system in SYSTEMS
        if not options.only or any(word.lower() in system.name.lower() for word in options.only)
    ]
    figures: dict[str, object] = {"cores": os.cpu_count(), "options": dict(vars(options))}
    if "bulk" in options.loads:
        results = measure([each for each in chosen if each.bulk], bulk, options)
        figures["bulk"] = results
        print(f"{int(options.mib) / 1024:g} GiB in frames of 1 MiB, medians of {options.rounds}:\n")
        table(results, BULK, SYSTEMS[0].name)
    for name, what in (("small", small), ("steady", steady)):
        if name in options.loads:
            results = measure([each for each in chosen if each.small], what, options)
            figures[name] = results
            pace = f"{options.window} unacknowledged" if name == "small" else f"{RATE:g} a second"
            print(f"Messages of 1 KiB, {pace}, medians of {options.rounds}:\n")
            table(results, SMALL)
    if "connections" in options.loads:
        figures["connections"] = connection_costs(options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def main() -> None:
    """Driver, or one of the ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    loads = ("bulk", "small", "steady", "connections")
    parser.add_argument("--loads", nargs="+", choices=loads, default=list(loads))
    parser.add_argument("--only", nargs="+", default=[], help="rows whose names have one of these words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large message")
    parser.add_argument("--count", type=int, default=20_000, help="of small messages")
    parser.add_argument("--window", type=int, default=64, help="small messages unacknowledged at a time")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between rows, for the disk")
    parser.add_argument("--scratch", default="", help="folder for the servers' data; a real disk")
    parser.add_argument("--json", default="", help="write every figure of every round to this file")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    parser.add_argument("--ends", default="", help=argparse.SUPPRESS)
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        load = Load.parse(options.load)
        getattr(importlib.import_module(f"brokers.{options.ends}"), options.role)(load)
        return
    if options.quick:
        options.rounds, options.mib, options.count, options.connections = 1, 128, 1000, 100
    drive(options)


if __name__ == "__main__":
    main()
