"""The page at `/`, in a real browser: what it shows, what one can do there, and that everybody can."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import aiohttp
import numpy as np
import pytest
from playwright.async_api import Page, expect

from browsing import AUDIT, Tabs, running_browser
from browsing.uploading import slow_upload
from storing import Gateways, NatsServers
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.access import Rights, TokenFile, TokenPlan
from tensorbus.bus.broker import Broker
from tensorbus.bus.client import Client
from tensorbus.bus.server import Server, ServerSettings
from tensorbus.bus.stores.file import FileStore
from tensorbus.bus.testing import running_broker

NF4: dict[str, object] = {"quantizer": {"name": "nf4"}, "keep": []}
SHAPE = (400, 256)
NARROW = (380, 800)
PATIENCE = 30_000
"""Milliseconds that another broker may take to lead."""


@pytest.fixture
async def tabs() -> AsyncIterator[Tabs]:
    """A browser of its own for each test."""
    async with running_browser() as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The broker's directory."""
    return tmp_path / "data"


async def take_part(url: str, name: str, stop: asyncio.Event) -> None:
    """A site that answers three rounds, and the rest when ``stop`` is set."""
    async with Client(url) as bus:
        async for task in Participant(bus, job="sft", site=name).rounds():
            model = cast("dict[str, np.ndarray]", await task.load())
            if task.round > 3:
                await stop.wait()
            await task.submit({key: value + 1 for key, value in model.items()}, 10, {"loss": 2 / task.round})


async def test_it_shows_a_running_federation(tabs: Tabs, data: Path) -> None:
    """Rounds, who is in and who is awaited, the loss, what the codec saves, an upload with its progress."""
    stop = asyncio.Event()
    spec = JobSpec("sft", sites=3, rounds=5, quorum=2, deadline=600, down=NF4, up=NF4)
    async with running_broker(data) as url, Client(url) as bus, asyncio.timeout(90):
        tab = await tabs.open(url)
        page = tab.page
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.get_by_text("No federated job here yet")).to_be_visible()
        await bus.publish("fl.sft.seed", {"w": np.zeros(SHAPE, np.float32)})
        work: list[asyncio.Task[object]] = [
            asyncio.create_task(Aggregator(bus, spec, init=None, listener=lambda _: None).run())
        ]
        released = asyncio.Event()
        released.set()
        work += [
            asyncio.create_task(take_part(url, "tokio", released)),
            asyncio.create_task(take_part(url, "lima", stop)),
            asyncio.create_task(take_part(url, "oslo", stop)),
        ]
        try:
            job = page.locator("article.job", has=page.get_by_role("heading", name="sft"))
            await expect(job).to_contain_text("round 4 of 5")
            await expect(job.locator(".site.in")).to_have_text(["tokioinloss 0.5"])
            await expect(job.locator(".site.waited .name")).to_have_text(["lima", "oslo"])
            await expect(job.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")
            loss = job.get_by_role("img")
            await expect(loss).to_have_attribute("aria-label", "loss: 2 in round 1, 0.6667 in round 3")
            await job.get_by_text("Rounds as a table").click()
            await expect(job.locator(".rounds tbody tr")).to_have_count(3)
            codec = page.locator("tr", has_text="nf4").filter(has_text="received")
            await expect(codec).to_contain_text("(86 %)")

            async with slow_upload(url, "backups.nightly", 4_000_000):
                upload = page.locator("li.transfer", has_text="backups.nightly")
                await expect(upload).to_contain_text("% of 3.8 MiB")
                await expect(upload.get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", "0")
            await expect(page.locator("li.transfer")).to_have_count(0)

            stop.set()
            await asyncio.gather(*work)
            await expect(job.locator(".badge")).to_have_text("done")
            await expect(loss).to_have_attribute("aria-label", "loss: 2 in round 1, 0.4 in round 5")
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        assert tab.complaints == []
        # It works without a network: nothing was asked of anybody else.
        assert {address.startswith(url) for address in tab.asked} == {True}


async def test_it_survives_a_restart_of_the_broker(tabs: Tabs, data: Path) -> None:
    """What was shown stays, the state is told, and news come again by themselves when the broker is back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = ServerSettings(port=port, shutdown_timeout=0.1)
    url = f"http://127.0.0.1:{port}"
    async with (
        Broker(FileStore(data)) as broker,
        Server(broker, settings),
        aiohttp.ClientSession(url) as http,
    ):
        await http.post("/v1/topics/before/messages", data=b"x")
        tab = await tabs.open(f"{url}/#topics")
        page = tab.page
        await expect(page.get_by_role("button", name="before", exact=True)).to_be_visible()
        assert tab.complaints == []
    await expect(page.locator("#connection")).to_have_text("broker away, trying again…")
    await expect(page.get_by_role("button", name="before", exact=True)).to_be_visible()
    async with (
        Broker(FileStore(data)) as broker,
        Server(broker, settings),
        aiohttp.ClientSession(url) as http,
    ):
        await http.post("/v1/topics/after/messages", data=b"x")
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.get_by_role("button", name="after", exact=True)).to_be_visible()
    # The browser itself notes each request that nobody answered; the page's scripts say nothing.
    assert all("Failed to load resource" in text or "ERR_" in text for text in tab.complaints)


async def test_it_shows_the_brokers_of_a_store(tabs: Tabs, tmp_path: Path) -> None:
    """At one that does not lead: which one does, and when that one dies, who leads then. It stays usable."""
    with NatsServers(tmp_path / "nats") as servers, Gateways(tmp_path, servers.address) as gateways:
        for _ in range(2):
            await asyncio.to_thread(gateways.start)
        leader = await asyncio.to_thread(gateways.leader)
        await asyncio.to_thread(gateways.ready, 1 - leader)
        first, other = gateways.urls[leader], gateways.urls[1 - leader]
        tab = await tabs.open(other, dark=True)
        page = tab.page
        rows = page.locator("table.brokers tbody tr")
        await expect(rows).to_have_count(2)
        await expect(page.get_by_role("heading", name="Brokers")).to_have_text("Brokers2 on jetstream")
        await expect(rows.filter(has_text=first)).to_contain_text("leads")
        await expect(rows.filter(has_text=other)).to_contain_text("stands by")
        await expect(rows.filter(has_text=other)).to_contain_text("nothing")
        assert await page.evaluate(AUDIT) == []
        assert tab.complaints == []
        gateways.kill(leader)
        await expect(rows.filter(has_text=first)).to_contain_text("away since", timeout=PATIENCE)
        await expect(rows.filter(has_text=other)).to_contain_text("leads", timeout=PATIENCE)
        await expect(page.locator("#connection")).to_have_text("live")


async def test_a_thousand_topics_are_searched_and_paged(tabs: Tabs, data: Path) -> None:
    """The document holds a page of them, however many there are; all can be found, ordered and read."""
    async with running_broker(data) as url, Client(url) as bus:
        names = [f"plant.{number:04}.readings" for number in range(1000)]
        for start in range(0, 1000, 100):
            await asyncio.gather(*(bus.publish(name, b"x") for name in names[start : start + 100]))
        await bus.publish("plant.0777.readings", b"y" * 5000)
        tab = await tabs.open(url)
        page = tab.page
        await page.get_by_role("link", name="Topics 1,000").click()
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(50)
        await expect(page.get_by_text("1–50 of 1,000")).to_be_visible()
        await page.get_by_role("button", name="Next").click()
        await expect(page.get_by_text("51–100 of 1,000")).to_be_visible()
        await expect(rows.first).to_contain_text("plant.0050.readings")
        await page.get_by_role("button", name="Bytes").click()
        await expect(rows.first).to_contain_text("plant.0777.readings")
        await expect(page.get_by_role("columnheader", name="Bytes")).to_have_attribute(
            "aria-sort", "descending"
        )
        await page.get_by_label("Search topics").fill("099")
        await expect(rows).to_have_count(11)
        await expect(page.get_by_label("Search topics")).to_be_focused()
        await page.get_by_role("button", name="plant.0990.readings").click()
        await page.locator("dialog summary").click()
        await expect(page.locator("dialog")).to_contain_text("plant.0990.readings")
        elements = await page.evaluate("document.querySelectorAll('*').length")
        assert elements < 800
        assert tab.complaints == []


async def test_dead_letters_with_a_token(tabs: Tabs, data: Path) -> None:
    """Without a token nothing is shown; a reader may inspect, and an admin replay and purge."""
    data.mkdir()
    tokens = TokenFile(data)
    _, reader = tokens.create(TokenPlan("reader", Rights(subscribe=(">",))))
    _, admin = tokens.create(TokenPlan("admin", Rights(admin=(">",))))
    headers = {"Authorization": f"Bearer {admin}"}
    async with running_broker(data) as url, aiohttp.ClientSession(url, headers=headers) as http:
        await http.put("/v1/consumers/trainer", json={"filter": "jobs.*"})
        for number in range(3):
            await http.post(f"/v1/topics/jobs.n{number}/messages", data=b"x")
        async with http.post("/v1/consumers/trainer/deliveries", json={"max": 3, "wait": 5}) as answer:
            for delivery in (await answer.json())["deliveries"]:
                place = f"/v1/consumers/trainer/deliveries/{delivery['token']}/term"
                await http.post(place, json={"reason": "the header <b>unit</b> is missing"})

        tab = await tabs.open(f"{url}/#dead")
        page = tab.page
        field = page.get_by_label("Token (tb_…)")
        await expect(field).to_be_focused()
        await field.fill(str(reader))
        await page.keyboard.press("Enter")
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(3)
        await expect(rows.first).to_contain_text("the header <b>unit</b> is missing")
        assert tab.complaints == []

        await page.get_by_role("button", name="Inspect jobs.n0 seq 1").click()
        await expect(page.locator("dialog")).to_contain_text("with consumer trainer, attempt 1")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Replay jobs.n0 seq 1").click()
        await expect(page.get_by_role("alert")).to_contain_text("no right to administrate")
        await expect(rows).to_have_count(3)

        await page.get_by_role("button", name="Token", exact=True).click()
        await field.fill(str(admin))
        await page.get_by_role("button", name="Use it").click()
        await page.get_by_role("button", name="Replay jobs.n0 seq 1").click()
        await expect(rows).to_have_count(2)
        async with http.get("/v1/messages?topic=jobs.n0") as answer:
            assert len((await answer.json())["messages"]) == 2
        await page.get_by_role("button", name="Purge…").click()
        await expect(page.get_by_label("Topics (a filter")).to_have_value("dead.trainer")
        await page.get_by_role("button", name="Purge", exact=True).click()
        await expect(page.get_by_text("There is none.")).to_be_visible()
        async with http.get("/v1/dead-letters") as answer:
            assert (await answer.json())["messages"] == []

        # The token is this tab's alone: nothing of it is where another one, or a restart, would find it.
        kept = await page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href].join()")
        assert str(admin) not in kept and "tb_" not in kept
        await page.get_by_role("link", name="Consumers").click()
        await page.get_by_role("button", name="trainer").click()
        await expect(page.locator("dialog")).to_contain_text("dead.trainer")


async def test_everything_can_be_reached_with_the_keyboard(tabs: Tabs, data: Path) -> None:
    """A link skips the navigation; Tab comes to every control, which shows it; dialogs give it back."""
    async with running_broker(data) as url, Client(url) as bus:
        await bus.publish("plant.readings", b"x")
        tab = await tabs.open(url)
        page = tab.page
        await expect(page.locator("#connection")).to_have_text("live")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.get_by_role("link", name="Topics").focus()
        await page.keyboard.press("Enter")
        topic = page.get_by_role("button", name="plant.readings")
        await expect(topic).to_be_visible()
        await expect(page.locator("main")).to_be_focused()
        found: list[str] = []
        for _ in range(12):
            await page.keyboard.press("Tab")
            found.append(await page.evaluate("document.activeElement.innerText || document.activeElement.id"))
            outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or found[-1] == "search", found[-1]
            if found[-1] == "plant.readings":
                break
        assert found[0] == "search"
        assert found[-1] == "plant.readings", found
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog[open]")).to_be_visible()
        await expect(page.locator("dialog")).to_contain_text("The newest messages")
        # A status that comes meanwhile changes neither the focus nor the dialog.
        await bus.publish("plant.other", b"x")
        await expect(page.get_by_role("link", name="Topics 2")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(topic).to_be_focused()
        assert tab.complaints == []


async def audited(page: Page) -> None:
    """Every view keeps to the rules."""
    for view in ("Overview", "Topics", "Consumers", "Dead letters"):
        await page.get_by_role("link", name=view).click()
        await expect(page.locator(f"main .view.{view.split()[0].lower()}")).to_be_visible()
        await expect(page.locator("main")).not_to_contain_text("Loading")
        assert await page.evaluate(AUDIT) == [], view


async def test_it_is_accessible_in_light_and_dark_wide_and_narrow(tabs: Tabs, data: Path) -> None:
    """With something to see in every view; dark is really dark."""
    async with running_broker(data) as url, Client(url) as bus, aiohttp.ClientSession(url) as http:
        await bus.publish("models.demo", {"w": np.zeros(SHAPE, np.float32)}, codec="nf4")
        spec = '{"job":"eu","sites":4,"rounds":9,"quorum":"80%","deadline":60,"up":{},"down":{}}'
        history = '[[1,4,{"loss":2.5}],[2,4,{"loss":1.5}]]'
        model = {"kind": "model", "job": "eu", "round": 3, "final": False, "spec": spec, "history": history}
        await bus.publish("fl.eu.model", b"", headers=model)
        await bus.publish("fl.eu.rounds", b"", headers={"kind": "open", "job": "eu", "round": 3, "at": 1.0})
        for site, kind in (("ulm", "update"), ("graz", "decline")):
            told = {"kind": kind, "job": "eu", "round": 3, "site": site, "num_examples": 5, "reason": "later"}
            await bus.publish("fl.eu.updates", b"", headers=told)
        await http.put("/v1/policies/demo", json={"filter": "models.>", "max_bytes": 100_000})
        await http.put("/v1/consumers/reader", json={"filter": "models.>", "ack_wait": 60})
        async with http.post("/v1/consumers/reader/deliveries", json={"wait": 5}) as answer:
            token = (await answer.json())["deliveries"][0]["token"]
        await http.post(f"/v1/consumers/reader/deliveries/{token}/term", json={"reason": "malformed"})
        for dark, size in ((False, (1280, 900)), (True, (1280, 900)), (False, NARROW), (True, NARROW)):
            tab = await tabs.open(url, dark=dark, size=size)
            await expect(tab.page.get_by_text("past its deadline")).to_be_visible()
            ground = await tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(",")))
            assert brightness < 150 if dark else brightness > 600
            await audited(tab.page)
            assert tab.complaints == []
            await tab.page.context.close()
