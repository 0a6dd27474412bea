"""The compose files, run for real: images are built, containers started, and a federation comes to its end.

`plain` is compose.yaml with the profile `demo`; `secure` the same with tokens and HTTPS, watched by a
Prometheus; `cluster` is compose.cluster.yaml, of which a NATS server and a gateway are killed in the midst.
``TENSORBUS_COMPOSE`` names what stands for `docker compose`; without it, `docker compose` or
`podman-compose` is taken where its engine answers, and where none does these tests are skipped. `cluster`
runs only if ``TENSORBUS_COMPOSE_VARIANTS`` names it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.job import update_key
from tensorbus.bus.client import Client, TlsSettings
from tensorbus.errors import Forbidden, Unauthorized
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
STANDINS = "tests/acceptance/compose"
"""Compose files with images that are built here and not pulled; nobody packages a Grafana to build one of."""


@dataclass(frozen=True)
class Variant:
    """Which compose files are run, and what of them."""

    files: tuple[str, ...]
    profiles: tuple[str, ...]
    services: tuple[str, ...]
    secrets: bool = True


NATS = ("nats-1", "nats-2", "nats-3")
SITES = ("site-a", "site-b")
VARIANTS = {
    "plain": Variant(("deploy/compose.yaml",), ("demo",), ("broker", "aggregator", *SITES), secrets=False),
    "secure": Variant(
        ("deploy/compose.yaml", "deploy/compose.secure.yaml", f"{STANDINS}/prometheus.yaml"),
        ("demo", "observe"),
        ("broker", "aggregator", *SITES, "prometheus"),
    ),
    "cluster": Variant(
        ("deploy/compose.cluster.yaml", f"{STANDINS}/cluster.yaml", f"{STANDINS}/prometheus.yaml"),
        ("demo", "observe"),
        (*NATS, "gateway-1", "gateway-2", "broker", "aggregator", *SITES, "prometheus"),
    ),
}


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


LONG = pytest.mark.skipif(
    "cluster" not in os.environ.get("TENSORBUS_COMPOSE_VARIANTS", ""),
    reason="takes two minutes more: TENSORBUS_COMPOSE_VARIANTS=cluster",
)


def on(*variants: str) -> pytest.MarkDecorator:
    """A test of these; each is started once."""
    named = [pytest.param(name, marks=LONG) if name == "cluster" else name for name in variants]
    return pytest.mark.parametrize("federation", named, indirect=True, scope="module")


@dataclass(frozen=True)
class Federation:
    """The running containers of one compose project.

    Attributes:
        port: of the broker, on this machine.
        watching: the port of Prometheus.
        secrets: the folder of secrets; None for a broker that anybody may use.
    """

    project: str
    variant: Variant
    port: int
    watching: int
    secrets: Path | None

    @property
    def url(self) -> str:
        """Of the broker, on the published port."""
        return f"{'https' if self.secrets else 'http'}://127.0.0.1:{self.port}"

    def client(self, user: str | None = "root") -> Client:
        """A client of the broker, with the token of ``user`` where there are tokens, or with none."""
        if self.secrets is None:
            return Client(self.url)
        token = (self.secrets / f"{user}.token").read_text().strip() if user else None
        return Client(self.url, token, tls=TlsSettings(self.secrets / "ca.pem"))

    def get(self, path: str) -> Any:
        """JSON from the broker, without a token."""
        trusted = ssl.create_default_context(cafile=self.secrets / "ca.pem") if self.secrets else None
        with urllib.request.urlopen(self.url + path, timeout=10, context=trusted) as response:
            return json.load(response)

    def compose(self, *arguments: str, limit: float = 120, check: bool = True) -> str:
        """Run a compose command on the project; what it printed, both streams together."""
        assert COMPOSE is not None
        files = [part for name in self.variant.files for part in ("-f", str(ROOT / name))]
        profiles = [part for name in self.variant.profiles for part in ("--profile", name)]
        done = subprocess.run(
            [*COMPOSE, "-p", self.project, *files, *profiles, *arguments],
            env={
                **os.environ,
                **SETTINGS,
                "TENSORBUS_PORT": str(self.port),
                "PROMETHEUS_PORT": str(self.watching),
                "SECRETS": str(self.secrets),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        assert done.returncode == 0 or not check, done.stdout[-6000:]
        return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def federation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    """All services built from this checkout and started; torn down with their volumes, whatever happens."""
    variant, folder = VARIANTS[request.param], None
    if variant.secrets:
        folder = tmp_path_factory.mktemp("secrets")
        subprocess.run(
            ["sh", ROOT / "deploy/make-secrets.sh", folder, SETTINGS["JOB"]],
            env={**os.environ, "TENSORBUS": f"{sys.executable} -m tensorbus"},
            check=True,
        )
    name = f"tensorbus-test-{request.param}-{os.getpid()}"
    running = Federation(name, variant, _free_port(), _free_port(), folder)
    try:
        running.compose("up", "--build", "-d", *variant.services, limit=BUILD_LIMIT)
        yield running
    finally:
        print(running.compose("logs", check=False)[-6000:])
        running.compose("down", "-v", check=False)


@on("plain", "secure", "cluster")
def test_broker_answers_on_the_loopback_port(federation: Federation) -> None:
    """The published port serves /healthz and /readyz, and is published on the loopback address only."""
    asyncio.run(_reachable(federation))
    for path, status in (("/healthz", "alive"), ("/readyz", "ready")):
        assert federation.get(path) == {"status": status}
    with pytest.raises(OSError):  # another loopback address stands for every other address of the machine
        socket.create_connection(("127.0.0.2", federation.port), timeout=3)


@on("plain", "secure", "cluster")
def test_the_health_checks_pass(federation: Federation) -> None:
    """What the compose files ask for in the containers that are ours is answered well."""
    asyncio.run(_reachable(federation))
    for service, container in _inspected(federation).items():
        if check := container["Config"].get("Healthcheck"):
            kind, *command = check["Test"]
            assert kind == "CMD"
            done = subprocess.run(
                [_engine(), "exec", container["Id"], *command], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"


@on("plain", "secure", "cluster")
def test_federation_of_the_sites_comes_to_its_end(federation: Federation) -> None:
    """Both sites train, answering each on its own topic; the final model is a finite change of the first.

    Of the cluster, a NATS server and a gateway are killed as soon as there is a first model.
    """
    asyncio.run(_first_model(federation))
    if "nats-1" in federation.variant.services:
        federation.compose("kill", "nats-1", "gateway-1")
    changed = asyncio.run(_final_change(federation))
    assert changed
    assert all(np.isfinite(change).all() for change in changed)
    asyncio.run(_answered(federation))


@on("plain")
@pytest.mark.parametrize("service", ["broker", "aggregator"])
def test_plain_images_have_no_torch(federation: Federation, service: str) -> None:
    """Broker and aggregator run as a user without rights, from an image into which no torch was installed."""
    assert _in_image(f"tensorbus-{service}", UID_AND_TORCH) == "10001 False"


@on("plain")
def test_site_image_has_torch_and_runs_as_a_user_without_rights(federation: Federation) -> None:
    """The site's image is the one with torch, and it is no more privileged than the others."""
    assert _in_image("tensorbus-site", UID_AND_TORCH) == "10001 True"


@on("plain")
@pytest.mark.parametrize("service", ["aggregator", "site"])
def test_images_quantise_with_compiled_kernels(federation: Federation, service: str) -> None:
    """The stage that builds the wheel has a compiler, and what it compiled loads in the images."""
    assert _in_image(f"tensorbus-{service}", KERNELS) == "c"


@on("plain")
def test_plain_images_are_small(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    """Without torch, Tensorbus and all that it needs add less than 200 MiB to the base image."""
    base = _size("python:3.11-slim")
    sizes = {name: _size(f"tensorbus-{name}") for name in ("broker", "aggregator", "site")}
    with capsys.disabled():
        print("\nimages, MiB:", {name: round(size / 2**20) for name, size in {"base": base, **sizes}.items()})
    assert sizes["broker"] - base < PLAIN_IMAGES_LIMIT
    assert sizes["aggregator"] - base < PLAIN_IMAGES_LIMIT


@on("secure", "cluster")
def test_prometheus_scrapes_the_broker_with_its_token(federation: Federation) -> None:
    """Over HTTPS, as deploy/observe/prometheus.*.yml says, with the alert rules beside it."""
    asyncio.run(_publish_one(federation))
    api = f"http://127.0.0.1:{federation.watching}/api/v1"
    query = urllib.parse.urlencode({"query": "tensorbus_sealed_messages_total > 0"})
    deadline = time.monotonic() + FEDERATION_LIMIT
    while not _json(f"{api}/query?{query}")["data"]["result"]:
        assert time.monotonic() < deadline, _json(f"{api}/targets")
        time.sleep(1)
    while _alerts(api)["TensorbusDown"] != "inactive":  # as it may be before the first scrape
        assert time.monotonic() < deadline, _alerts(api)
        time.sleep(1)


def _alerts(api: str) -> dict[str, str]:
    """The state of each rule."""
    (group,) = _json(f"{api}/rules")["data"]["groups"]
    return {rule["name"]: rule["state"] for rule in group["rules"]}


@on("plain", "secure", "cluster")
def test_containers_have_no_rights_and_know_their_limits(federation: Federation) -> None:
    """A root file system that nobody writes to, no capabilities, and a limit of memory."""
    for service, container in _inspected(federation).items():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"] is True, service
        assert host["Memory"] >= 1 << 29, service
        assert not container["EffectiveCaps"], service


@on("secure", "cluster")
def test_nobody_gets_in_without_a_token(federation: Federation) -> None:
    """A client without a token is turned away, and a site does not see the topics of others."""

    async def look(user: str | None) -> set[str]:
        async with federation.client(user) as bus:
            return {topic.topic for topic in await bus.topics()}

    asyncio.run(_publish_one(federation))
    with pytest.raises(Unauthorized):
        asyncio.run(look(None))
    assert "notes" in asyncio.run(look("root"))
    assert "notes" not in asyncio.run(look("site-b"))


@on("secure", "cluster")
def test_a_site_speaks_for_itself_only(federation: Federation) -> None:
    """With its token it publishes neither as another site, nor models, nor orders."""
    job = f"fl.{SETTINGS['JOB']}"

    async def publish(user: str, topic: str) -> None:
        async with federation.client(user) as bus:
            await bus.publish(topic, b"x", key="forged")

    asyncio.run(_reachable(federation))
    for topic in ("updates.site-a", "updates", "seed", "model", "rounds"):
        with pytest.raises(Forbidden):
            asyncio.run(publish("site-b", f"{job}.{topic}"))


async def _reachable(federation: Federation) -> None:
    """The client waits for a broker that is about to come up; no engine here waits for health checks."""
    async with federation.client() as bus:
        await bus.topics()


async def _publish_one(federation: Federation) -> None:
    async with asyncio.timeout(FEDERATION_LIMIT), federation.client() as bus:
        await bus.publish("notes", b"x", key="one")


async def _first_model(federation: Federation) -> None:
    """Wait until the sites can begin."""
    async with (
        asyncio.timeout(FEDERATION_LIMIT),
        federation.client() as bus,
        bus.subscribe(f"fl.{SETTINGS['JOB']}.model") as deliveries,
    ):
        await deliveries.receive()


async def _final_change(federation: Federation) -> list[npt.NDArray[np.float32]]:
    """What the final model adds to the first one, slice by slice, where it adds anything."""
    async with (
        asyncio.timeout(FEDERATION_LIMIT),
        federation.client() as bus,
        bus.subscribe(f"fl.{SETTINGS['JOB']}.model") as deliveries,
    ):
        async for delivery in deliveries:
            if delivery.headers["final"]:
                return [_change(event) async for event in delivery.slices() if event.payload]
            await delivery.ack()
    raise AssertionError("the subscription ended before the final model came")


async def _answered(federation: Federation) -> None:
    """Each site has published its update, on the topic that its token is for."""
    job = SETTINGS["JOB"]
    for site in SITES:
        async with federation.client(site) as bus:
            assert await bus.receipt(f"fl.{job}.updates.{site}", update_key(job, 1, site)), site


def _change(event: SliceEvent) -> npt.NDArray[np.float32]:
    """The change in a slice; it can be decoded without the weights, which the sites have."""
    values = np.zeros(event.count, np.float32)
    event.codec.change().accumulate(event.payload, event.offset, values, 1.0)
    return values


def _json(url: str) -> Any:
    """The answer, waiting for a server that is about to come up."""
    deadline = time.monotonic() + FEDERATION_LIMIT
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except OSError:
            assert time.monotonic() < deadline, f"nobody answers at {url}"
            time.sleep(0.5)


def _inspected(federation: Federation) -> dict[str, dict[str, Any]]:
    """What the engine knows of the container of each service."""
    containers = federation.compose("ps", "-q").split()
    # Lines that a compose command says besides are no containers, and what there is of the others is told.
    told = subprocess.run([_engine(), "inspect", *containers], capture_output=True, text=True, timeout=60)
    found = {
        container["Config"]["Labels"]["com.docker.compose.service"]: container
        for container in json.loads(told.stdout)
        if "com.docker.compose.service" in container.get("Config", {}).get("Labels", {})
    }
    assert found.keys() == set(federation.variant.services)
    return found


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
