"""How the broker process stops: nothing new begins, what is under way ends, and the exit code is 0."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

SERVE = (sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--json")
SIZE = 8 << 20
"""Bytes of a body that does not fit into the kernel's buffers."""


class Broker:
    """A broker process."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.said: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.said.append(line)
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Until a line of its log has this text."""
        with self._news:
            assert self._news.wait_for(lambda: any(text in line for line in self.said), 30), self.said

    def stop(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def connect(self) -> socket.socket:
        """A connection to it."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)


@contextmanager
def serving(data: Path, *options: str) -> Generator[Broker]:
    """A broker process on a free port."""
    with subprocess.Popen(
        (*SERVE, "--data", str(data), *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Broker(process, json.loads(process.stdout.readline())["url"])
        finally:
            process.kill()


def begin_publish(broker: Broker, size: int) -> socket.socket:
    """An upload of which the broker has taken the head and one byte."""
    publisher = broker.connect()
    publisher.sendall(
        b"POST /v1/topics/a/messages HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Content-Length: %d\r\n\r\n" % size
    )
    assert b"100 Continue" in publisher.recv(1000)
    publisher.sendall(b"x")
    return publisher


def ask(connection: socket.socket, head: str, body: str = "") -> tuple[int, str]:
    """One request on a connection that stays open: status and body of the answer."""
    connection.sendall(f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    with connection.makefile("rb") as answer:
        status = int(answer.readline().split()[1])
        length = 0
        while (line := answer.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            length = int(value) if name.lower() == b"content-length" else length
        return status, answer.read(length).decode()


def test_an_upload_that_is_under_way_is_acknowledged(tmp_path: Path) -> None:
    """After SIGTERM it gets the time to end; new connections and new work are refused; then exit code 0."""
    with serving(tmp_path, "--shutdown-timeout", "60") as broker:
        idle, other = broker.connect(), broker.connect()
        for connection in (idle, other):
            assert ask(connection, "GET /readyz")[0] == 200
        publisher = begin_publish(broker, 3)
        broker.stop()
        broker.wait_for("waiting up to 60 s for 1 uploads and 0 downloads")
        with pytest.raises(ConnectionRefusedError):
            broker.connect()
        status, said = ask(idle, "GET /readyz")
        assert status == 503 and "draining" in said
        status, said = ask(other, "POST /v1/topics/a/messages", "hello")
        assert status == 503 and "stopping" in said
        publisher.sendall(b"yz")
        assert publisher.recv(10000).startswith(b"HTTP/1.1 201 ")
        assert broker.process.wait(30) == 0
        for connection in (idle, other, publisher):
            connection.close()
    with serving(tmp_path) as again, urlopen(f"{again.url}/v1/messages") as answer:
        assert len(json.load(answer)["messages"]) == 1


def test_a_download_that_is_under_way_is_finished(tmp_path: Path) -> None:
    """A reader who has begun gets the whole message."""
    with serving(tmp_path, "--shutdown-timeout", "60") as broker:
        request = Request(f"{broker.url}/v1/topics/a/messages", data=b"x" * SIZE)
        with urlopen(request) as answer:
            stored = json.load(answer)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            reader.settimeout(30)
            host, port = broker.url.removeprefix("http://").split(":")
            reader.connect((host, int(port)))
            reader.sendall(f"GET /v1/messages/{stored['id']}/frames HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = reader.recv(1000)
            broker.stop()
            broker.wait_for("waiting up to 60 s for 0 uploads and 1 downloads")
            while piece := reader.recv(1 << 20):
                got += piece
        assert len(got.partition(b"\r\n\r\n")[2]) == stored["bytes"]
        assert broker.process.wait(30) == 0


def test_the_wait_is_bounded(tmp_path: Path) -> None:
    """A publisher who never ends holds up the stop no longer than --shutdown-timeout; the exit code is 0."""
    with serving(tmp_path, "--shutdown-timeout", "0.2") as broker, begin_publish(broker, SIZE):
        broker.stop()
        broker.wait_for("cutting 1 uploads and 0 downloads")
        assert broker.process.wait(30) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path: Path, second: signal.Signals) -> None:
    """Whoever is in a hurry says it twice: what is under way is cut, and nothing acknowledged is lost."""
    with serving(tmp_path, "--shutdown-timeout", "3600") as broker:
        with begin_publish(broker, SIZE):
            broker.stop()
            broker.wait_for("waiting up to 3600 s")
            broker.process.send_signal(second)
            assert broker.process.wait(30) == 0
        broker.wait_for("told to stop once more")


def test_a_worker_may_still_settle_what_it_holds(tmp_path: Path) -> None:
    """Acks are taken while the broker drains, so that the work is not done twice after the restart."""
    with serving(tmp_path, "--shutdown-timeout", "60") as broker:
        urlopen(Request(f"{broker.url}/v1/topics/a/messages", data=b"hello")).close()
        urlopen(Request(f"{broker.url}/v1/consumers/w", data=b'{"filter": ">"}', method="PUT")).close()
        with broker.connect() as worker:
            _, said = ask(worker, "POST /v1/consumers/w/deliveries")
            [delivery] = json.loads(said)["deliveries"]
            with begin_publish(broker, 3) as publisher:
                broker.stop()
                broker.wait_for("waiting up to 60 s")
                status, _ = ask(worker, f"POST /v1/consumers/w/deliveries/{delivery['token']}/ack")
                assert status == 204
                publisher.sendall(b"yz")
                assert publisher.recv(10000).startswith(b"HTTP/1.1 201 ")
        assert broker.process.wait(30) == 0
    with serving(tmp_path) as again, urlopen(f"{again.url}/v1/consumers/w") as answer:
        consumer = json.load(answer)
    assert (consumer["ack_pending"], consumer["backlog"]) == (0, 1)


def test_a_resumable_upload_is_parked_and_goes_on_after_the_restart(tmp_path: Path) -> None:
    """It does not hold up the stop: what had come is there at the next start, and the rest is added to it."""
    tus = {"Tus-Resumable": "1.0.0"}
    chunk = tus | {"Content-Type": "application/offset+octet-stream"}
    with serving(tmp_path, "--shutdown-timeout", "3600") as broker:
        with urlopen(Request(f"{broker.url}/v1/topics/a/messages", data=b"x" * SIZE)) as answer:
            stored = json.load(answer)["id"]
        with urlopen(f"{broker.url}/v1/messages/{stored}/frames") as answer:
            body: bytes = answer.read()
        create = Request(
            f"{broker.url}/v1/topics/a/uploads",
            data=b"",
            headers=chunk | {"Upload-Length": str(len(body))},
        )
        with urlopen(create) as answer:
            place = answer.headers["Location"]
        half = len(body) // 2
        with broker.connect() as publisher:
            head = f"PATCH {place} HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nContent-Length: {len(body)}\r\n"
            fields = "".join(f"{name}: {value}\r\n" for name, value in chunk.items())
            publisher.sendall(f"{head}{fields}Expect: 100-continue\r\n\r\n".encode())
            assert b"100 Continue" in publisher.recv(1000)
            publisher.sendall(body[:half])
            broker.stop()
            assert broker.process.wait(30) == 0
    with serving(tmp_path) as again:
        with urlopen(Request(f"{again.url}{place}", headers=tus, method="HEAD")) as answer:
            offset = int(answer.headers["Upload-Offset"])
        assert 0 <= offset <= half
        fields = chunk | {"Upload-Offset": str(offset)}
        rest = Request(f"{again.url}{place}", data=body[offset:], headers=fields, method="PATCH")
        with urlopen(rest) as answer:
            message = answer.headers["Tensorbus-Message"]
        with urlopen(f"{again.url}/v1/messages/{message}/frames") as answer:
            assert answer.read() == body
