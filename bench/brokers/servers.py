"""The servers that are compared, each started for one row on a port and a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .child import Child

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    pid: int
    address: tuple[str, int]


class Missing(Exception):
    """A program that this row needs is not installed."""


@contextmanager
def relay(_folder: Path, *, paced: bool = False) -> Generator[Running]:
    """Blocking TCP."""
    with Child([sys.executable, "-c", f"from brokers.raw import relay; relay({paced})"], _here()) as child:
        yield Running(child.pid, (HOST, int(str(child.hear()["port"]))))


@contextmanager
def tensorbus(folder: Path, *options: str) -> Generator[Running]:
    """`tensorbus serve`."""
    command = [sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--data", str(folder / "data")]
    with _log(folder) as log, _quiet([*command, "--json", *options], log) as (process, output):
        line = "" if output is None else output.readline()
        if not line:
            raise Missing(f"tensorbus serve {' '.join(options)}: {_tail(folder)}")
        port = int(str(json.loads(line)["url"]).rpartition(":")[2])
        yield Running(process.pid, (HOST, port))


@contextmanager
def nats(folder: Path, *, sync_always: bool = False) -> Generator[Running]:
    """nats-server with JetStream on files."""
    program = _program("nats-server")
    port = _free_port()
    sync = ", sync_interval: always" if sync_always else ""
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "{HOST}:{port}"\njetstream {{ store_dir: "{folder}/js", max_file_store: 64GB{sync} }}\n'
    )
    with _log(folder) as log, _quiet([program, "-c", str(config)], log) as (process, _):
        _wait_for(port)
        yield Running(process.pid, (HOST, port))


@contextmanager
def redis(folder: Path, *options: str) -> Generator[Running]:
    """redis-server as it comes, plus ``options``."""
    program = _program("redis-server")
    port = _free_port()
    command = [program, "--port", str(port), "--bind", HOST, "--dir", str(folder), *options]
    with _log(folder) as log, _quiet(command, log) as (process, _):
        _wait_for(port)
        yield Running(process.pid, (HOST, port))


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection((HOST, port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Missing(f"the server on port {port} did not start")


@contextmanager
def _log(folder: Path) -> Generator[IO[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as file:
        yield file


def _tail(folder: Path) -> str:
    return (folder / "log").read_text()[-300:]


@contextmanager
def _quiet(command: Sequence[str], log: IO[str]) -> Generator[tuple[subprocess.Popen[str], IO[str] | None]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process, process.stdout
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
