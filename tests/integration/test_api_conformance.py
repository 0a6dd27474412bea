"""The server does what its OpenAPI document says: schemathesis asks a running broker, with all its checks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from tensorbus.bus.access import Rights, TokenFile, TokenPlan

BROKER = """
import asyncio, json, sys
from pathlib import Path
from tensorbus.bus.access import TokenFile
from tensorbus.bus.broker import Broker, BrokerSettings
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore

async def main(data):
    settings = ServerSettings(port=0, max_wait=0.2, max_stream=0.2, idle_timeout=5.0)
    async with Broker(FileStore(data)) as broker, Server(broker, settings, TokenFile(data)) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""
"""A broker whose long polls are short; in a process of its own, as schemathesis is."""

HOOKS = """
import schemathesis

@schemathesis.serializer("application/offset+octet-stream", "application/vnd.tensorbus.batch")
def chunk(_context, value):
    return {"data": value if isinstance(value, bytes) else str(value).encode()}
"""
"""How bodies of tus and of batches are made."""

CONFIG = """
warnings = false
hooks = "tus_bodies"

[generation]
deterministic = true
allow-extra-parameters = false

[checks]
max_response_time = 20.0

# What the state of the broker refuses, whatever the schema says of the request by itself: a limit or a quota
# of the topic (413, 507), another version (412), a range of what is there (416), a message that was replaced
# (410), a body that is no sequence of frames (422), or has no length (411).
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 410, 411, 412, 413, 416, 422, 429, 507]

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 507]

[checks.negative_data_rejection]
expected-statuses = ["4xx", 507]

# Tus-Resumable is missing: tus says 412.
[checks.missing_required_header]
expected-statuses = [400, 401, 403, 412]

# A back-off must not be longer than the attempts that it is for, which JSON Schema cannot say.
[[operations]]
include-operation-id = "ensureConsumer"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 409, 413]

# "new" wants a limit beside it.
[[operations]]
include-operation-id = "putPolicy"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 409, 413]

# One of two fields, and the shape of a field's text: more than JSON Schema is told here.
[[operations]]
include-operation-id = ["createUpload", "patchUpload", "overrideUpload"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "4xx", 507]
"""


@contextmanager
def serving(data: Path) -> Generator[str]:
    """A broker process; yields its URL."""
    command = (sys.executable, "-c", BROKER, str(data))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def conform(url: str, folder: Path, *options: str) -> None:
    """Let schemathesis test the broker at ``url``; fail with its report."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    (folder / "tus_bodies.py").write_text(HOOKS)
    done = subprocess.run(
        (
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(config), "run", f"{url}/openapi.json", "--checks", "all"),
            *("--max-examples", "10", "--seed", "4", *options),
        ),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = done.stdout.replace(str(folder), "")
    assert done.returncode == 0, report + done.stderr
    assert "No issues found" in report, report


UPLOADS = ("--include-tag", "uploads")
"""By themselves, and last: whoever follows a message waits for an upload that nobody goes on with."""


def test_a_broker_without_tokens_conforms(tmp_path: Path) -> None:
    """Every operation, examples, edge cases, fuzzing and chains of calls: all checks of schemathesis pass.

    Making the first token would lock everybody out, the tester too, and so is left to the other test.
    """
    with serving(tmp_path / "data") as url:
        conform(url, tmp_path, "--exclude-operation-id", "createToken", "--exclude-tag", "uploads")
        conform(url, tmp_path, *UPLOADS)


def test_a_broker_with_tokens_conforms(tmp_path: Path) -> None:
    """The same with a token that may do everything; without it, or with another, all of it is refused."""
    data = tmp_path / "data"
    data.mkdir()
    _, credential = TokenFile(data).create(TokenPlan("tester", Rights(admin=(">",))))
    header = ("--header", f"Authorization: Bearer {credential}")
    with serving(data) as url:
        conform(url, tmp_path, *header, "--exclude-operation-id", "revokeToken", "--exclude-tag", "uploads")
        conform(url, tmp_path, *header, *UPLOADS)
        assert refused_to_everybody(url, str(credential)) == set()
        # Among the tokens to revoke it finds its own, so this comes last.
        conform(
            url, tmp_path, *header, "--include-operation-id", "revokeToken", "--phases", "coverage,fuzzing"
        )


def refused_to_everybody(url: str, credential: str) -> set[tuple[str, str]]:
    """Operations that never had another answer than 401 or 403, and so were not tested at all."""
    with urlopen(f"{url}/openapi.json") as answer:
        paths: dict[str, dict[str, object]] = json.load(answer)["paths"]
    with urlopen(Request(f"{url}/metrics", headers={"Authorization": f"Bearer {credential}"})) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        answered = {
            (sample.labels["method"], sample.labels["route"])
            for family in families
            for sample in family.samples
            if sample.name == "tensorbus_http_requests_total"
            and sample.labels["status"] not in ("401", "403")
        }
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    return described - answered - {("GET", "/metrics"), ("DELETE", "/v1/tokens/{id}")}
