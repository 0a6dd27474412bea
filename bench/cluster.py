"""The same work on the embedded store and on JetStream: one broker and two, R=1 and R=3, in one run.

    python bench/cluster.py
    python bench/cluster.py --mib 64 --readers 2 --json figures.json

All processes run on this machine, over loopback: what is seen is what the layers cost, not what three
machines with three disks can do. Rounds go through all rows in turn; medians count. With two brokers,
readers are spread over both, and so are publishers, unless a row says that all of them use the one that does
not lead.

- publish: two messages at a time, of ``--mib`` MiB each, from processes of their own that send ready frames;
- download: ``--readers`` at a time read all of it; a server process that has it in its cache reads no disk;
- small: messages of 1 KiB, 64 under way, each in a request of its own;
- settle: one delivery after the other is pulled and acknowledged: the latency of a decision;
- CPU: seconds of the brokers and of the NATS servers for each GiB that was published or downloaded; and what
  of a publish the broker that leads has spent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
from brokers.servers import HOST, Missing

from tensorbus.streaming.raw import RawEncoder

MIB = 1 << 20
GIB = 1 << 30
FRAMES = {"Content-Type": "application/vnd.tensorbus.frames"}
SMALL = 1500
SETTLED = 150
AT_ONCE = 64

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """What is measured: so many brokers, on so many NATS servers; on files where there are none.

    The first broker leads; messages are published at those from ``publish_at`` on.
    """

    name: str
    brokers: int
    servers: int
    publish_at: int = 0


ROWS = (
    Row("files, 1 broker", 1, 0),
    Row("JetStream R=1, 1 broker", 1, 1),
    Row("JetStream R=1, 2 brokers", 2, 1),
    Row("JetStream R=1, at the second of 2", 2, 1, 1),
    Row("JetStream R=3, 1 broker", 1, 3),
    Row("JetStream R=3, 2 brokers", 2, 3),
    Row("JetStream R=3, at the second of 2", 2, 3, 1),
)


@dataclass(slots=True)
class Running:
    """The processes of one row."""

    urls: list[str]
    brokers: list[int]
    servers: list[int]


# --- processes ---------------------------------------------------------------------------------------


@contextmanager
def started(row: Row, folder: Path) -> Generator[Running]:
    """Start them, wait until they answer, and end them."""
    with ExitStack() as stack:
        ports, servers = _nats(row.servers, folder, stack)
        options: list[str] = []
        if ports:
            hosts = ",".join(f"{HOST}:{port}" for port in ports)
            options = ["--store", f"nats://{hosts}?replicas={row.servers}"]
        running = Running([], [], [process.pid for process in servers])
        for number in range(row.brokers):
            command = [sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--json"]
            command += ["--data", str(folder / f"data{number}"), *options]
            log = stack.enter_context((folder / f"broker{number}.log").open("w"))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(_end, process)
            assert process.stdout is not None
            running.urls.append(str(json.loads(process.stdout.readline())["url"]))
            running.brokers.append(process.pid)
            # Each before the next is started, so that the first one leads.
            asyncio.run(_answering(running.urls))
        yield running


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _nats(count: int, folder: Path, stack: ExitStack) -> tuple[list[int], list[subprocess.Popen[str]]]:
    beside = Path(sys.executable).parent / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if count and program is None:
        raise Missing("nats-server is not installed")
    first = 21000 + os.getpid() % 1000 * 8
    ports = [first + number for number in range(count)]
    routes = ", ".join(f'"nats://{HOST}:{port + 4}"' for port in ports)
    processes: list[subprocess.Popen[str]] = []
    for number, port in enumerate(ports):
        here = folder / f"nats{number}"
        here.mkdir()
        cluster = f'cluster {{ name: bench, listen: "{HOST}:{port + 4}", routes: [{routes}] }}\n'
        (here / "conf").write_text(
            f'server_name: "n{number}"\nlisten: "{HOST}:{port}"\n{cluster if count > 1 else ""}'
            f'jetstream {{ store_dir: "{here}/js", max_file_store: 64GB }}\n'
        )
        command = [str(program), "-c", str(here / "conf"), "-l", str(here / "log")]
        process = subprocess.Popen(command, text=True)
        stack.callback(_end, process)
        processes.append(process)
    if count:
        time.sleep(2 + count)  # until a cluster has agreed who leads; the brokers wait for the rest
    return ports, processes


async def _answering(urls: list[str]) -> None:
    async with aiohttp.ClientSession() as session:
        for url in urls:
            for _ in range(300):
                async with session.get(f"{url}/v1/consumers") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.1)


def _cpu(pids: list[int]) -> float:
    """Seconds of processor time so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- the work ----------------------------------------------------------------------------------------


async def _body(size: int) -> AsyncGenerator[bytes]:
    """A message of one item, frame by frame."""
    encoder = RawEncoder({}, "application/octet-stream", size)
    yield encoder.open()
    piece = bytes(MIB - 1024)
    left = size
    while left:
        part = piece[: min(left, len(piece))]
        for head, payload in encoder.slices(part):
            yield head + bytes(payload)
        left -= len(part)
    yield encoder.close()


async def _publish(url: str, topic: str, size: int) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/topics/{topic}/messages", data=_body(size), headers=FRAMES) as answer,
    ):
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["id"])


async def _download(url: str, message: str) -> int:
    async with (
        aiohttp.ClientSession(read_bufsize=MIB) as session,
        session.get(f"{url}/v1/messages/{message}/frames") as answer,
    ):
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
        return size


def _apart(work: str, url: str, *given: str) -> subprocess.Popen[str]:
    """``work`` in a process of its own."""
    command = [sys.executable, __file__, "--work", work, url, *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _said(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [process.communicate()[0].strip() for process in processes]


async def _small(urls: list[str]) -> float:
    """Messages a second."""
    body = b"".join([part async for part in _body(1024)])
    left = iter(range(SMALL))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def some(url: str) -> None:
            for _ in left:
                async with session.post(
                    f"{url}/v1/topics/small/messages", data=body, headers=FRAMES
                ) as answer:
                    assert answer.status == 201

        began = time.perf_counter()
        await asyncio.gather(*(some(urls[number % len(urls)]) for number in range(AT_ONCE)))
        return SMALL / (time.perf_counter() - began)


async def _settle(url: str) -> float:
    """Milliseconds of a pull and its acknowledgement, in the median."""
    took: list[float] = []
    async with aiohttp.ClientSession() as session:
        path = f"{url}/v1/consumers/bench"
        async with session.put(path, json={"filter": "small"}) as answer:
            assert answer.status in (200, 201)
        for _ in range(SETTLED):
            began = time.perf_counter()
            async with session.post(f"{path}/deliveries", json={"max": 1, "wait": 5}) as answer:
                (delivery,) = (await answer.json())["deliveries"]
            async with session.post(f"{path}/deliveries/{delivery['token']}/ack") as answer:
                assert answer.status == 204
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def measure(row: Row, mib: int, readers: int) -> Figures:
    """One round of one row."""
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as name, started(row, Path(name)) as running:
        urls = running.urls
        gib = mib * MIB / GIB
        before = _cpu(running.brokers), _cpu(running.servers), _cpu(running.brokers[:1])
        began = time.perf_counter()
        to = urls[row.publish_at :]
        publishing = [_apart("publish", to[n % len(to)], f"bulk.{n}", str(mib * MIB)) for n in range(2)]
        messages = _said(publishing)
        published = time.perf_counter() - began
        middle = _cpu(running.brokers), _cpu(running.servers), _cpu(running.brokers[:1])
        began = time.perf_counter()
        reading = [_apart("download", urls[n % len(urls)], messages[n % 2]) for n in range(readers)]
        sizes = _said(reading)
        downloaded = time.perf_counter() - began
        assert all(int(size) > mib * MIB for size in sizes), sizes
        after = _cpu(running.brokers), _cpu(running.servers)
        return {
            "publish MiB/s": 2 * mib / published,
            "download MiB/s": readers * mib / downloaded,
            "small messages/s": asyncio.run(_small(urls)),
            "settle ms": asyncio.run(_settle(urls[-1])),
            "publish: brokers s/GiB": (middle[0] - before[0]) / (2 * gib),
            "publish: of that, leader s/GiB": (middle[2] - before[2]) / (2 * gib),
            "publish: servers s/GiB": (middle[1] - before[1]) / (2 * gib),
            "download: brokers s/GiB": (after[0] - middle[0]) / (readers * gib),
            "download: servers s/GiB": (after[1] - middle[1]) / (readers * gib),
        }


def show(results: dict[str, list[Figures]]) -> None:
    """A table of medians."""
    names = list(next(iter(results.values()))[0])
    print("| | " + " | ".join(names) + " |")
    print("| --- |" + " ---: |" * len(names))
    for row, rounds in results.items():
        medians = [statistics.median(figures[name] for figures in rounds) for name in names]
        print(f"| {row} | " + " | ".join(f"{value:.4g}" for value in medians) + " |")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="parts of rows' names")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        kind, url, *rest = cast("list[str]", given.work)
        work = _publish(url, rest[0], int(rest[1])) if kind == "publish" else _download(url, rest[0])
        print(asyncio.run(work))
        return
    wanted = cast("list[str]", given.only)
    rows = [row for row in ROWS if not wanted or any(part in row.name for part in wanted)]
    results: dict[str, list[Figures]] = {row.name: [] for row in rows}
    for _ in range(given.rounds):
        for row in rows:
            results[row.name].append(measure(row, given.mib, given.readers))
    show(results)
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
