"""The suite of the broker runs on every store: see `storing`.

``--stores jetstream`` runs it on one kind only, ``--stores all`` all of it on all kinds.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import ModuleType

import pytest

from storing import KINDS, NatsServers, Stores, frames_left
from storing.suite import ABOUT_FILES, CLUSTERED, FOLLOWED, SUITE
from tensorbus.bus import testing
from tensorbus.bus.server import writing


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--stores``."""
    parser.addoption("--stores", default="", help=f"kinds of stores: {', '.join(KINDS)}, or all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of the suite once for each kind of store that is to pass it."""
    name = metafunc.definition.path.stem
    if name in SUITE:
        kinds = _kinds(metafunc.config, name, metafunc.definition.originalname)
        metafunc.parametrize("store_kind", kinds, indirect=True)


def _kinds(config: pytest.Config, module: str, test: str) -> list[str]:
    asked = str(config.getoption("--stores"))
    kinds = list(KINDS) if asked in ("", "all") else asked.split(",")
    if not asked and module not in CLUSTERED:
        kinds = ["file", "jetstream"]
        if module in FOLLOWED:
            kinds.append("follower")
    kinds = [kind for kind in kinds if kind != "follower" or module in FOLLOWED]
    return [kind for kind in kinds if kind == "file" or test not in ABOUT_FILES]


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[NatsServers]:
    """One NATS server for all tests."""
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        yield servers


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[NatsServers]:
    """Three NATS servers for all tests."""
    with NatsServers(tmp_path_factory.mktemp("cluster"), 3) as servers:
        yield servers


@pytest.fixture(autouse=True)
def store_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """Puts a store of the kind in the place of the embedded one, in the test's module and for its servers."""
    kind = str(getattr(request, "param", "file"))
    if kind == "file":
        yield kind
        return
    servers: NatsServers | None = None
    if kind != "memory":
        servers = request.getfixturevalue("nats_cluster" if kind == "cluster" else "nats_server")
    stores = Stores(servers)
    modules: list[ModuleType] = [testing, sys.modules[request.node.module.__name__]]
    if kind == "follower":
        monkeypatch.setattr(writing, "MUCH", 0)
        monkeypatch.setattr(modules[1], "running_broker", stores.run_follower)
    for module in modules:
        if hasattr(module, "FileStore"):
            monkeypatch.setattr(module, "FileStore", stores.make)
    monkeypatch.setattr(frames_left, "stores", stores)
    yield kind
    stores.close()
