"""/metrics: what Prometheus gets to see, read with Prometheus' own parser."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

from tensorbus.bus.testing import running_broker


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a broker of its own."""
    async with running_broker(tmp_path) as url, aiohttp.ClientSession(url) as session:
        yield session


async def scrape(http: aiohttp.ClientSession) -> dict[str, Metric]:
    """The families by name."""
    async with http.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return {family.name: family for family in text_string_to_metric_families(await answer.text())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The sample of this name and these labels."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == f"tensorbus_{name}" and sample.labels.items() >= labels.items()
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


async def post(http: aiohttp.ClientSession, path: str, **options: Any) -> Any:
    """The JSON answer to a POST, which went well; None if there is none."""
    async with http.post(path, **options) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json() if answer.status != 204 else None


async def test_messages_bytes_frames_and_duplicates_are_counted(http: aiohttp.ClientSession) -> None:
    """Each figure moves with what it is about."""
    receipt: dict[str, Any] = {}
    for number in range(3):
        receipt = await post(http, "/v1/topics/demo/messages", data=b"x" * 1000, headers=_key(f"k{number}"))
    assert (await post(http, "/v1/topics/demo/messages", data=b"x" * 1000, headers=_key("k1")))["duplicate"]
    async with http.get(f"/v1/messages/{receipt['id']}/frames") as answer:
        await answer.read()
    seen = await scrape(http)
    assert value(seen, "messages") == 3
    assert value(seen, "stored_bytes") == 3 * receipt["bytes"]
    assert value(seen, "sealed_messages_total") == 3
    assert value(seen, "received_frames_total") == 3 * receipt["frames"]
    assert value(seen, "duplicate_messages_total") == 1
    assert value(seen, "received_bytes_total") >= 3000
    assert value(seen, "sent_bytes_total") == receipt["bytes"]
    assert value(seen, "open_uploads") == value(seen, "open_downloads") == value(seen, "open_messages") == 0
    assert value(seen, "publish_duration_seconds_count") == 3
    assert value(seen, "connections") >= 1
    assert 0 < value(seen, "disk_free_bytes") <= value(seen, "disk_size_bytes")


async def test_a_publish_that_is_cut_is_counted_as_given_up(http: aiohttp.ClientSession) -> None:
    """What never became a message is a figure of its own."""
    headers = {"Content-Type": "application/vnd.tensorbus.frames"}
    async with http.post("/v1/topics/demo/messages", data=struct.pack("<8x"), headers=headers) as answer:
        assert answer.status == 422
    assert value(await scrape(http), "aborted_messages_total") == 1


async def test_each_flush_is_counted_and_timed(http: aiohttp.ClientSession) -> None:
    """An acknowledged message was flushed: the rows, and a large one's file as well."""
    before = await scrape(http)
    await post(http, "/v1/topics/demo/messages", data=b"x" * (1 << 20))
    after = await scrape(http)
    for kind in ("file", "rows"):
        counted = [value(seen, "fsync_duration_seconds_count", kind=kind) for seen in (before, after)]
        assert counted[1] > counted[0]


async def test_a_consumer_shows_its_queue(http: aiohttp.ClientSession) -> None:
    """Backlog and unacknowledged by consumer; hand-overs, those that were repeated, acks."""
    async with http.put("/v1/consumers/site-a", json={"filter": "demo.>"}) as answer:
        assert answer.status == 201
    for _ in range(3):
        await post(http, "/v1/topics/demo.a/messages", data=b"x")
    path = "/v1/consumers/site-a/deliveries"
    [first] = (await post(http, path, json={"max": 1}))["deliveries"]
    await post(http, f"{path}/{first['token']}/nak", json={"delay": 0})
    again, other = (await post(http, path, json={"max": 2}))["deliveries"]
    await post(http, f"{path}/{again['token']}/ack")
    seen = await scrape(http)
    assert value(seen, "consumers") == 1
    assert value(seen, "consumer_backlog", consumer="site-a") == 1
    assert value(seen, "consumer_ack_pending", consumer="site-a") == value(seen, "ack_pending") == 1
    assert value(seen, "deliveries_total") == 3
    assert value(seen, "redeliveries_total") == 1
    assert value(seen, "acks_total") == 1
    assert value(seen, "handover_delay_seconds_count") == 2
    assert other["attempt"] == 1


async def test_a_refused_message_becomes_a_dead_letter_that_is_counted(http: aiohttp.ClientSession) -> None:
    """Dead letters are a figure that somebody should look at."""
    async with http.put("/v1/consumers/a", json={"filter": "demo"}) as answer:
        assert answer.status == 201
    await post(http, "/v1/topics/demo/messages", data=b"x")
    [delivery] = (await post(http, "/v1/consumers/a/deliveries"))["deliveries"]
    await post(http, f"/v1/consumers/a/deliveries/{delivery['token']}/term")
    assert value(await scrape(http), "dead_letters_total") == 1


async def test_requests_are_timed_by_route(http: aiohttp.ClientSession) -> None:
    """Labels are the API's routes, never what somebody wrote into an address."""
    for path in ("/v1/messages", "/v1/messages/" + "0" * 32, "/nothing", "/never/heard/of"):
        async with http.get(path):
            pass
    async with http.request("PURGE", "/v1/messages"):
        pass
    seen = await scrape(http)
    assert value(seen, "http_requests_total", method="GET", route="/v1/messages", status="200") == 1
    assert value(seen, "http_requests_total", method="GET", route="/v1/messages/{id}", status="404") == 1
    assert value(seen, "http_requests_total", method="GET", route="none", status="404") == 2
    assert value(seen, "http_requests_total", method="other", route="none", status="405") == 1
    name = "http_request_duration_seconds"
    assert value(seen, f"{name}_count", method="GET", route="/v1/messages") == 1
    assert value(seen, f"{name}_bucket", method="GET", route="/v1/messages", le="+Inf") == 1


async def test_the_names_follow_the_conventions(http: aiohttp.ClientSession) -> None:
    """As `promtool check metrics` wants them: help, types, units, counters that end in _total."""
    await post(http, "/v1/topics/demo/messages", data=b"x")
    async with http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    families = {family.name: family for family in text_string_to_metric_families("\n".join(lines) + "\n")}
    ours = {name: family for name, family in families.items() if name.startswith("tensorbus_")}
    assert len(ours) > 30
    for name, family in ours.items():
        assert re.fullmatch(r"tensorbus(_[a-z]+)+", name)
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram"), name
        assert not name.endswith(("_count", "_sum", "_bucket", "_total")), name
        if family.type == "counter":
            assert all(sample.name == name + "_total" for sample in family.samples)
        if family.type == "histogram":
            assert name.endswith("_seconds")
            assert "le" in {label for sample in family.samples for label in sample.labels}
        for unit in ("milliseconds", "kilobytes", "mib", "ms"):
            assert not name.endswith(unit), name
    assert len(lines) == len(set(lines))


async def test_buckets_add_up(http: aiohttp.ClientSession) -> None:
    """Buckets are cumulative, end with +Inf, and that is the count."""
    for _ in range(20):
        await post(http, "/v1/topics/demo/messages", data=b"x")
    family = (await scrape(http))["tensorbus_publish_duration_seconds"]
    buckets = [(sample.labels["le"], sample.value) for sample in family.samples if "le" in sample.labels]
    bounds = [float(bound) for bound, _ in buckets]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == 20
    [total] = [sample.value for sample in family.samples if sample.name.endswith("_sum")]
    assert total > 0


async def test_openmetrics_is_spoken_too(http: aiohttp.ClientSession) -> None:
    """Whoever asks for OpenMetrics gets it."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with http.get("/metrics", headers=headers) as answer:
        assert answer.content_type == "application/openmetrics-text"
        text = await answer.text()
    untyped = parser.text_string_to_metric_families  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    read = cast(Callable[[str], Iterable[Metric]], untyped)
    assert {family.name for family in read(text)} >= {"tensorbus_messages"}


async def test_two_servers_do_not_mix_their_figures(tmp_path: Path) -> None:
    """Each server of a process has a registry of its own."""
    async with (
        running_broker(tmp_path / "a") as one,
        running_broker(tmp_path / "b") as two,
        aiohttp.ClientSession(one) as first,
        aiohttp.ClientSession(two) as second,
    ):
        await post(first, "/v1/topics/demo/messages", data=b"x")
        assert value(await scrape(first), "messages") == 1
        assert value(await scrape(second), "messages") == 0


def _key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}
