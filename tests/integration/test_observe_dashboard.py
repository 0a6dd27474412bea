"""The dashboard of deploy/observe: Grafana's types know it, and Prometheus has data for each of its queries.

Prometheus is the real one (Debian's package `prometheus`), with the scrape configuration and the alert rules
of deploy/observe; it scrapes a real broker on which a small federation runs.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import numpy as np
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from storing import Gateways, NatsServers
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker

OBSERVE = Path(__file__).resolve().parents[2] / "deploy/observe"
BOARD = OBSERVE / "grafana/dashboards/tensorbus.json"
PATIENCE = 60.0
"""Seconds after which a wait has failed."""


def board() -> dict[str, Any]:
    """The dashboard as it is provisioned."""
    return json.loads(BOARD.read_text())


def queries() -> list[tuple[str, str]]:
    """Title of the panel and expression of each query."""
    return [
        (panel["title"], target["expr"]) for panel in board()["panels"] for target in panel.get("targets", [])
    ]


def filled(expression: str) -> str:
    """What Grafana sends for it: all instances, and windows that cover the test."""
    for name, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable that this test does not know: {expression}"
    return expression


class Prometheus:
    """The HTTP API of one that runs."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str, **parameters: str) -> Any:
        """The data of a good answer."""
        async with self._session.get(f"/api/v1/{path}", params=parameters) as answer:
            told = await answer.json()
        assert told["status"] == "success", told
        return told["data"]

    async def values(self, expression: str) -> list[float]:
        """The numbers among the samples, one a series."""
        found = (await self.get("query", query=expression))["result"]
        numbers = [float(series["value"][1]) for series in found]
        return [number for number in numbers if not math.isnan(number)]

    async def until(self, expression: str) -> None:
        """Wait until it has a sample."""
        async with asyncio.timeout(PATIENCE):
            while not await self.values(expression):
                await asyncio.sleep(0.2)


@asynccontextmanager
async def watched(urls: Sequence[str], folder: Path) -> AsyncGenerator[Prometheus]:
    """A Prometheus that scrapes these brokers each second, as deploy/observe/prometheus.yml says."""
    if shutil.which("prometheus") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Debian's package prometheus is not installed")
    text = (OBSERVE / "prometheus.yml").read_text()
    assert text.count("15s") == 2
    assert text.count('"broker:8080"') == 1
    targets = ", ".join(f'"{url.removeprefix("http://")}"' for url in urls)
    text = text.replace("15s", "1s").replace('"broker:8080"', targets)
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(OBSERVE / "alerts.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address={address}",
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession(f"http://{address}") as session:
            await _ready(session, process, folder)
            yield Prometheus(session)
    finally:
        process.terminate()
        await process.wait()


async def _ready(session: aiohttp.ClientSession, process: asyncio.subprocess.Process, folder: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            assert process.returncode is None, (folder / "prometheus.log").read_text()
            try:
                async with session.get("/-/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)


async def federation(url: str) -> None:
    """Two sites, two rounds of a model of 1 MiB; and a durable consumer that refuses a message."""

    async def site(name: str) -> None:
        async with Client(url) as bus:
            participant = Participant(bus, job="seen", site=name)
            async for task in participant.rounds():
                model = cast("dict[str, Any]", await task.load())
                await task.submit({key: value + 1 for key, value in model.items()}, num_examples=1)

    async with Client(url) as bus:
        await bus.publish("fl.seen.seed", {"weight": np.zeros((512, 512), np.float32)}, key="seed")
        job = JobSpec("seen", sites=2, rounds=2, quorum=2, deadline=600)
        aggregator = Aggregator(bus, job, init=None, listener=lambda event: None)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(aggregator.run(), site("a"), site("b"))
        await bus.publish("notes.one", b"not for me")
        async with bus.subscribe("notes.>", consumer="reader") as deliveries:
            delivery = await deliveries.receive()
            assert delivery is not None
            await delivery.term("a test")


async def test_each_query_of_the_dashboard_and_each_rule_has_data(
    tmp_path: Path, nats_server: NatsServers
) -> None:
    """A panel that would be empty in Grafana is found here; a query of what there is not proves that.

    One broker has files, on which the federation runs, and another a store that others could share.
    """
    (tmp_path / "prometheus").mkdir()
    with Gateways(tmp_path, f"{nats_server.address}&name=observed") as gateways:
        gateways.start()
        async with (
            running_broker(tmp_path / "broker") as url,
            watched([url, *gateways.urls], tmp_path / "prometheus") as prometheus,
        ):
            await _see_all(prometheus, url, gateways.urls)


async def _see_all(prometheus: Prometheus, url: str, shared: Sequence[str]) -> None:
    async with asyncio.timeout(2 * PATIENCE):
        await prometheus.until(f'tensorbus_build_info{{instance="{url.removeprefix("http://")}"}}')
        await prometheus.until("sum(tensorbus_leads) == 1")
        await federation(url)
        await prometheus.until(
            "tensorbus_consumer_backlog and on() increase(tensorbus_dead_letters_total[1m]) > 0"
        )
        await prometheus.until("count_over_time(tensorbus_consumer_backlog[1m]) >= 2")
        for title, expression in queries():
            assert await prometheus.values(filled(expression)), f"{title}: no data for {expression}"
        assert not await prometheus.values("sum(rate(tensorbus_nothing_of_that_name_total[1m]))")
        labels = await prometheus.get("label/instance/values", **{"match[]": "tensorbus_build_info"})
        known = sorted(each.removeprefix("http://") for each in (url, *shared))
        assert labels == known, "the dashboard's variable lists the brokers"

        async with asyncio.timeout(PATIENCE):
            while (found := await _rules(prometheus))["TensorbusDeadLetters"]["state"] != "firing":
                await asyncio.sleep(0.2)
        assert {rule["health"] for rule in found.values()} == {"ok"}, found
        assert found["TensorbusDamage"]["state"] == found["TensorbusDown"]["state"] == "inactive"
        assert found["TensorbusNoLeader"]["state"] == "inactive"


async def _rules(prometheus: Prometheus) -> dict[str, Any]:
    groups = (await prometheus.get("rules"))["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


def test_the_dashboard_is_one_that_grafana_knows() -> None:
    """Read by Grafana's own types and written again it loses nothing: no field is unknown or misspelt."""
    assert not list(_lost(board(), _through_the_types(board())))
    typo = board()
    typo["panels"][1]["fieldConfig"]["defaults"]["unti"] = "bytes"
    assert list(_lost(typo, _through_the_types(typo))) == ["$.panels[1].fieldConfig.defaults.unti"]


def test_panels_have_titles_ids_and_room() -> None:
    """Each id is there once, every panel explains itself, and none lies on another."""
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_provisioning_names_the_data_source_of_the_dashboard() -> None:
    """The data source that is provisioned is the one that the dashboard begins with."""
    source = (OBSERVE / "grafana/provisioning/datasources/prometheus.yml").read_text()
    variable = board()["templating"]["list"][0]
    assert f"uid: {variable['current']['value']}\n" in source
    assert f"type: {variable['query']}\n" in source


def _through_the_types(source: dict[str, Any]) -> Any:
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(source), cls=JSONEncoder))


def _lost(before: Any, after: Any, at: str = "$") -> Iterator[str]:
    """Paths of what is not in ``after`` as it was before."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in cast("dict[str, Any]", before).items():
            there = cast("dict[str, Any]", after)
            if key in there:
                yield from _lost(value, there[key], f"{at}.{key}")
            else:
                yield f"{at}.{key}"
    elif isinstance(before, list) and isinstance(after, list):
        first, second = cast("list[Any]", before), cast("list[Any]", after)
        if len(first) != len(second):
            yield at
        for index, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from _lost(one, other, f"{at}[{index}]")
    elif before != after:
        yield at
