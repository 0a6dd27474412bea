"""`tensorbus serve` as a process: how it starts, refuses to start, and stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

SERVE = (sys.executable, "-m", "tensorbus", "serve")


@contextmanager
def serving(data: Path, *options: str) -> Generator[tuple[str, subprocess.Popen[str]]]:
    """A broker process on a free port; yields its URL once it is ready."""
    command = (*SERVE, "--port", "0", "--data", str(data), "--json", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            assert ready["pid"] == process.pid
            yield ready["url"], process
        finally:
            process.kill()


def publish(url: str, text: bytes) -> str:
    """Publish a plain text; returns the message's id."""
    with urlopen(Request(f"{url}/v1/topics/demo/messages", data=text)) as answer:
        return json.load(answer)["id"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_it_is_told_to(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end it with exit code 0."""
    with serving(tmp_path) as (url, process):
        publish(url, b"hello")
        process.send_signal(number)
        assert process.wait(20) == 0


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """After kill -9 the next start has every message that was acknowledged."""
    with serving(tmp_path) as (url, process):
        name = publish(url, b"hello")
        process.kill()
        process.wait(20)
    with serving(tmp_path) as (url, _), urlopen(f"{url}/v1/messages/{name}/items/body") as answer:
        assert b"hello" in answer.read()


def test_a_long_poll_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    """Waiting workers are answered with nothing when the broker stops."""
    with serving(tmp_path) as (url, process):
        put = Request(f"{url}/v1/consumers/a", data=b'{"filter": ">"}', method="PUT")
        urlopen(put).close()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as worker:
            body = b'{"wait": 60}'
            worker.sendall(
                b"POST /v1/consumers/a/deliveries HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
            )
            worker.sendall(b"Expect: 100-continue\r\n\r\n")
            assert b"100 Continue" in worker.recv(1000)
            worker.sendall(body)
            process.send_signal(signal.SIGTERM)
            answer = worker.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 200 ") and b'{"deliveries": []}' in answer
        assert process.wait(20) == 0


def refused(*options: str, **environment: str) -> str:
    """Start a broker that must not start; returns what it says."""
    done = subprocess.run(
        (*SERVE, *options),
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Exit code 1 and a message with the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--port", port, "--data", str(tmp_path))
    assert port in said and "--port" in said


def test_a_directory_in_use_is_named(tmp_path: Path) -> None:
    """A second broker on the same data directory is refused; the first is not disturbed."""
    with serving(tmp_path) as (url, _):
        said = refused("--port", "0", "--data", str(tmp_path))
        assert str(tmp_path) in said and "another broker" in said
        assert publish(url, b"still here")


def test_a_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """What a newer Tensorbus wrote is left alone, with a message that says so."""
    with serving(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "meta.db") as database:
        database.execute("PRAGMA user_version = 1000")
    assert "newer" in refused("--port", "0", "--data", str(tmp_path))


def test_other_machines_are_let_in_only_on_request(tmp_path: Path) -> None:
    """An address beyond loopback needs --allow-remote or its variable: nobody is asked for a password."""
    options = ("--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path))
    assert "--allow-remote" in refused(*options, TENSORBUS_ALLOW_REMOTE="0")
    with serving(tmp_path, "--host", "0.0.0.0", "--allow-remote") as (url, _):
        port = url.rpartition(":")[2]
        assert publish(f"http://127.0.0.1:{port}", b"hello")


def test_the_broker_process_needs_no_arrays(tmp_path: Path) -> None:
    """Law 3: a server that takes a publish has loaded neither numpy nor torch nor the codecs."""
    program = """
import asyncio, json, sys, urllib.request
from pathlib import Path
from tensorbus.cli.main import cli
from tensorbus.cli.serve import command
from tensorbus.bus.testing import running_broker

async def main():
    async with running_broker(Path(sys.argv[1])) as url:
        def talk():
            with urllib.request.urlopen(f"{url}/v1/topics/demo/messages", data=b"hello") as answer:
                name = json.load(answer)["id"]
            for path in (f"/{name}", f"/{name}/frames", f"/{name}/items/body", ""):
                urllib.request.urlopen(f"{url}/v1/messages{path}").read()
        await asyncio.to_thread(talk)

asyncio.run(main())
heavy = ("numpy", "torch", "tensorbus.codecs")
print([name for name in sys.modules if name.startswith(heavy)])
"""
    done = subprocess.run(
        (sys.executable, "-c", program, str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
