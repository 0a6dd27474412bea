"""The compose file, run for real: images are built, containers started, and a federation comes to its end.

``TENSORBUS_COMPOSE`` names what stands for `docker compose`; without it, `docker compose` or
`podman-compose` is taken where its engine answers, and where none does these tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.bus.client import Client
from tensorbus.streaming.decoder import SliceEvent

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"JOB": "compose", "ROUNDS": "1", "STEPS": "1", "MODEL_FLAGS": "--tiny"}
BUILD_LIMIT = 1200
"""Seconds; the first build on a machine downloads torch."""
FEDERATION_LIMIT = 300
"""Seconds for one round of a toy model."""
PLAIN_IMAGES_LIMIT = 200 << 20
"""Bytes that the images without torch add to their base image at most."""
KERNELS = "from tensorbus.codecs.kernels import status; print(status().kind)"
UID_AND_TORCH = "import importlib.util as u, os; print(os.getuid(), u.find_spec('torch') is not None)"


def _answers(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def _compose_command() -> list[str] | None:
    if given := os.environ.get("TENSORBUS_COMPOSE"):
        return shlex.split(given)
    if _answers("docker", "info") and _answers("docker", "compose", "version"):
        return ["docker", "compose"]
    if _answers("podman", "info") and _answers("podman-compose", "version"):
        return ["podman-compose"]
    return None


COMPOSE = _compose_command()
pytestmark = pytest.mark.skipif(
    COMPOSE is None, reason="no container engine answers, and TENSORBUS_COMPOSE is not set"
)


@dataclass(frozen=True)
class Federation:
    """The running containers of one compose project."""

    project: str
    port: int

    @property
    def url(self) -> str:
        """Of the broker, on the published port."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, limit: float = 120, check: bool = True) -> str:
        """Run a compose command on the project; what it printed, both streams together."""
        assert COMPOSE is not None
        done = subprocess.run(
            [
                *COMPOSE,
                "-p",
                self.project,
                "-f",
                str(ROOT / "deploy/compose.yaml"),
                "--profile",
                "demo",
                *arguments,
            ],
            env={**os.environ, **SETTINGS, "TENSORBUS_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        assert done.returncode == 0 or not check, done.stdout[-6000:]
        return done.stdout


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """All services built from this checkout and started; torn down with their volumes, whatever happens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    running = Federation(f"tensorbus-test-{os.getpid()}", port)
    try:
        running.compose("up", "--build", "-d", limit=BUILD_LIMIT)
        yield running
    finally:
        print(running.compose("logs", check=False)[-6000:])
        running.compose("down", "-v", check=False)


def test_broker_answers_on_the_loopback_port(federation: Federation) -> None:
    """The published port serves /healthz and /readyz, and is published on the loopback address only."""
    asyncio.run(_reachable(federation))
    for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
        with urllib.request.urlopen(federation.url + path, timeout=10) as response:
            assert json.load(response) == {"status": status}
    with pytest.raises(OSError):  # another loopback address stands for every other address of the machine
        socket.create_connection(("127.0.0.2", federation.port), timeout=3)


def test_federation_of_the_sites_comes_to_its_end(federation: Federation) -> None:
    """Both sites train, the aggregator folds their changes, and the final model is a finite change itself."""
    changed = asyncio.run(_final_change(federation))
    assert changed
    assert all(np.isfinite(change).all() for change in changed)


@pytest.mark.parametrize("service", ["broker", "aggregator"])
def test_plain_images_have_no_torch(federation: Federation, service: str) -> None:
    """Broker and aggregator run as a user without rights, from an image into which no torch was installed."""
    assert _in_image(f"tensorbus-{service}", UID_AND_TORCH) == "10001 False"


def test_site_image_has_torch_and_runs_as_a_user_without_rights(federation: Federation) -> None:
    """The site's image is the one with torch, and it is no more privileged than the others."""
    assert _in_image("tensorbus-site", UID_AND_TORCH) == "10001 True"


@pytest.mark.parametrize("service", ["aggregator", "site"])
def test_images_quantise_with_compiled_kernels(federation: Federation, service: str) -> None:
    """The stage that builds the wheel has a compiler, and what it compiled loads in the images."""
    assert _in_image(f"tensorbus-{service}", KERNELS) == "c"


def test_plain_images_are_small(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    """Without torch, Tensorbus and all that it needs add less than 200 MiB to the base image."""
    base = _size("python:3.11-slim")
    sizes = {name: _size(f"tensorbus-{name}") for name in ("broker", "aggregator", "site")}
    with capsys.disabled():
        print("\nimages, MiB:", {name: round(size / 2**20) for name, size in {"base": base, **sizes}.items()})
    assert sizes["broker"] - base < PLAIN_IMAGES_LIMIT
    assert sizes["aggregator"] - base < PLAIN_IMAGES_LIMIT


async def _reachable(federation: Federation) -> None:
    """The client waits for a broker that is about to come up; no engine here waits for health checks."""
    async with Client(federation.url) as bus:
        await bus.topics()


async def _final_change(federation: Federation) -> list[npt.NDArray[np.float32]]:
    """What the final model adds to the first one, slice by slice, where it adds anything."""
    async with (
        asyncio.timeout(FEDERATION_LIMIT),
        Client(federation.url) as bus,
        bus.subscribe(f"fl.{SETTINGS['JOB']}.model") as deliveries,
    ):
        async for delivery in deliveries:
            if delivery.headers["final"]:
                return [_change(event) async for event in delivery.slices() if event.payload]
            await delivery.ack()
    raise AssertionError("the subscription ended before the final model came")


def _change(event: SliceEvent) -> npt.NDArray[np.float32]:
    """The change in a slice; it can be decoded without the weights, which the sites have."""
    values = np.zeros(event.count, np.float32)
    event.codec.change().accumulate(event.payload, event.offset, values, 1.0)
    return values


def _engine() -> str:
    assert COMPOSE is not None
    return "docker" if COMPOSE[0] == "docker" else "podman"


def _in_image(image: str, code: str) -> str:
    """What Python says in a fresh container of ``image``."""
    done = subprocess.run(
        [_engine(), "run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def _size(image: str) -> int:
    done = subprocess.run(
        [_engine(), "image", "inspect", "--format", "{{.Size}}", image],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)
