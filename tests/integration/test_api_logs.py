"""The log of a broker process: each line names its request and message, and none can be forged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tensorbus.bus import log_context
from tensorbus.bus.server.logs import JsonLines, TextLines

SERVE = (sys.executable, "-m", "tensorbus", "serve", "--port", "0", "--json", "--verbose")


@contextmanager
def serving(data: Path, *options: str) -> Generator[tuple[str, list[str]]]:
    """A broker process: its URL, and the lines of its log, complete when the block is left."""
    lines: list[str] = []
    with subprocess.Popen(
        (*SERVE, "--data", str(data), *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            yield json.loads(process.stdout.readline())["url"], lines
            process.terminate()
            lines += process.stderr.read().splitlines()
        finally:
            process.kill()


def talk(url: str) -> dict[str, Any]:
    """Publish, hand over, settle, ask for what is not there; what the broker said of the message."""
    named = {"X-Request-Id": "publish-1", "Authorization": "Bearer hunter2"}
    with urlopen(Request(f"{url}/v1/topics/demo/messages", data=b"hello", headers=named)) as answer:
        assert answer.headers["X-Request-Id"] == "publish-1"
        receipt = json.load(answer)
    urlopen(Request(f"{url}/v1/consumers/a", data=b'{"filter": ">"}', method="PUT")).close()
    with urlopen(Request(f"{url}/v1/consumers/a/deliveries", data=b"{}")) as answer:
        [delivery] = json.load(answer)["deliveries"]
    ack = f"{url}/v1/consumers/a/deliveries/{delivery['token']}/ack"
    urlopen(Request(ack, data=b"", headers={"X-Request-Id": "ack-1"})).close()
    with pytest.raises(HTTPError):
        urlopen(Request(f"{url}/v1/messages/%0aforged", headers={"X-Request-Id": "not sane"}))
    return receipt


def test_json_lines_name_request_and_message(tmp_path: Path) -> None:
    """One object a line; those of a publish and of an ack have the ids of the request and of the message."""
    with serving(tmp_path, "--log-json") as (url, lines):
        receipt = talk(url)
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    by_request = {entry["request"]: entry for entry in entries if "method" in entry}
    assert by_request["publish-1"]["message"] == by_request["ack-1"]["message"] == receipt["id"]
    assert by_request["publish-1"]["status"] == 201
    assert by_request["publish-1"]["ms"] >= 0
    assert by_request["ack-1"]["method"] == "POST"
    assert all("time" in entry and "level" in entry and "text" in entry for entry in entries)
    assert "not sane" not in by_request
    assert "hunter2" not in "\n".join(lines)


def test_text_lines_name_them_too_and_cannot_be_forged(tmp_path: Path) -> None:
    """In brackets at the end of the line; a newline in a name does not begin another line."""
    with serving(tmp_path) as (url, lines):
        receipt = talk(url)
    [published] = [line for line in lines if "POST /v1/topics/demo/messages 201" in line]
    assert published.endswith(f"[request=publish-1 message={receipt['id']}]")
    assert not [line for line in lines if line.startswith("forged")]
    assert "hunter2" not in "\n".join(lines)


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_a_name_cannot_end_the_line(formatter: logging.Formatter) -> None:
    """Control characters of what was logged are escaped, whoever logs."""
    record = logging.LogRecord(
        "a", logging.INFO, "a.py", 1, "took %s", ("x\n2026 INFO all is well\x1b[2J",), None
    )
    line = formatter.format(record)
    assert "\n" not in line and "\x1b" not in line


def test_lines_outside_of_requests_name_nothing() -> None:
    """The broker's own lines have no ids."""
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "stopped", (), None)
    assert log_context.fields() == {}
    assert TextLines().format(record).endswith("stopped")
    assert set(json.loads(JsonLines().format(record))) == {"time", "level", "logger", "text"}
