"""Policies as users see them: over HTTP, with the client and on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tensorbus.bus.access import Quotas, Rights, TokenFile, TokenPlan
from tensorbus.bus.client import Client
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.testing import running_broker
from tensorbus.errors import Conflict, Forbidden, NotFound, QuotaExceeded


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A broker of its own."""
    async with running_broker(tmp_path) as url:
        yield url


async def call(url: str, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
    """Status and JSON of the answer; None where there is no body."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession(url) as http,
        http.request(method, path, json=body, headers=headers) as answer,
    ):
        text = await answer.read()
        return answer.status, await answer.json(content_type=None) if text else None


async def test_a_policy_is_a_resource(url: str) -> None:
    """201 when it is new, 200 when it is changed, 404 when it is gone, 409 when topics would have two."""
    path = "/v1/policies/models"
    assert (await call(url, "GET", path))[0] == 404
    status, policy = await call(url, "PUT", path, {"filter": "models.>", "max_messages": 2})
    assert status == 201
    assert policy | {"created": ""} == {
        "name": "models",
        "filter": "models.>",
        "retention": "limits",
        "max_messages": 2,
        "max_bytes": None,
        "max_age": None,
        "discard": "old",
        "duplicate_window": None,
        "topics": 0,
        "messages": 0,
        "bytes": 0,
        "created": "",
    }
    assert (await call(url, "PUT", path, {"filter": "models.>", "max_messages": 1}))[0] == 200
    status, problem = await call(url, "PUT", "/v1/policies/other", {"filter": "models.a"})
    assert (status, problem["type"]) == (409, "urn:tensorbus:problem:conflict")
    status, problem = await call(url, "PUT", "/v1/policies/other", {"filter": "a", "discard": "new"})
    assert (status, problem["type"]) == (400, "urn:tensorbus:problem:invalid-request")
    assert [p["name"] for p in (await call(url, "GET", "/v1/policies"))[1]["policies"]] == ["models"]
    assert (await call(url, "DELETE", path))[0] == 204
    assert (await call(url, "DELETE", path))[0] == 404


async def test_a_full_topic_answers_507(url: str) -> None:
    """With a problem that names the policy, for a plain body as for the client."""
    async with Client(url) as bus:
        await bus.set_policy("p", PolicyConfig("a.b", max_messages=1, discard="new"))
        first = await bus.publish("a.b", b"one", key="k")
        with pytest.raises(QuotaExceeded, match="policy p"):
            await bus.publish("a.b", b"two")
        assert (await bus.publish("a.b", b"one", key="k")).id == first.id
        async with (
            aiohttp.ClientSession(url) as http,
            http.post("/v1/topics/a.b/messages", data=b"two") as answer,
        ):
            assert answer.status == 507
            assert (await answer.json())["type"] == "urn:tensorbus:problem:quota-exceeded"
        (policy,) = await bus.policies()
        assert (policy.topics, policy.messages) == (1, 1)
        with pytest.raises(Conflict):
            await bus.set_policy("q", PolicyConfig("a.*"))
        await bus.delete_policy("p")
        with pytest.raises(NotFound):
            await bus.delete_policy("p")
        await bus.publish("a.b", b"two")


async def test_policies_are_for_admins_of_their_topics(tmp_path: Path) -> None:
    """Readers see them, those without rights on the topics do not, and only admins change them."""
    tokens = TokenFile(tmp_path)

    def made(name: str, **rights: tuple[str, ...]) -> str:
        return str(tokens.create(TokenPlan(name, Rights(**rights)))[1])

    admin, reader, other = (
        made("admin", admin=("a.>",)),
        made("reader", subscribe=("a.>",)),
        made("other", subscribe=("b.>",), admin=("b.>",)),
    )
    async with running_broker(tmp_path) as url:
        async with Client(url, reader) as bus:
            with pytest.raises(Forbidden):
                await bus.set_policy("p", PolicyConfig("a.*"))
        async with Client(url, admin) as bus:
            with pytest.raises(Forbidden):
                await bus.set_policy("p", PolicyConfig(">"))
            await bus.set_policy("p", PolicyConfig("a.*"))
        async with Client(url, reader) as bus:
            assert [policy.name for policy in await bus.policies()] == ["p"]
            with pytest.raises(Forbidden):
                await bus.delete_policy("p")
        async with Client(url, other) as bus:
            assert await bus.policies() == []
            with pytest.raises(NotFound):
                await bus.delete_policy("p")
            with pytest.raises(Forbidden) as told:
                await bus.set_policy("p", PolicyConfig("b.*"))
            assert "a.*" not in str(told.value)


async def test_the_quota_of_a_token_holds_over_http(tmp_path: Path) -> None:
    """What the token file says is what the broker lets it store, however the bytes come."""
    tokens = TokenFile(tmp_path)
    rights = Rights(publish=("a.>",), subscribe=("a.>",), admin=("a.>",))
    _, credential = tokens.create(TokenPlan("site", rights, quotas=Quotas(max_bytes=30_000_000)))
    async with running_broker(tmp_path) as url, Client(url, str(credential)) as bus:
        first = await bus.publish("a.b", bytes(20_000_000))
        await bus.publish("a.c", bytes(1_000_000))
        with pytest.raises(QuotaExceeded, match="token"):
            await bus.publish("a.b", bytes(11_000_000))
        await bus.delete(first.id)
        await bus.publish("a.b", bytes(11_000_000))


async def tensorbus(url: str, *arguments: str) -> tuple[int, str]:
    """Exit code and standard output of the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TENSORBUS_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tensorbus", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**environment, "TENSORBUS_URL": url},
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_policies_on_the_command_line(url: str) -> None:
    """set, list, delete; for people and as JSON."""
    code, out = await tensorbus(
        url, "policies", "set", "updates", "fl.*", "--retention", "workqueue", "--max-age", "60"
    )
    assert (code, out) == (0, "updates: fl.*: until its consumer has it, 60 s\n")
    code, out = await tensorbus(url, "policies", "list", "--json")
    assert code == 0
    assert json.loads(out)["retention"] == "workqueue"
    assert "until its consumer has it" in (await tensorbus(url, "policies", "list"))[1]
    assert (await tensorbus(url, "policies", "delete", "updates"))[0] == 0
    assert (await tensorbus(url, "policies", "delete", "updates"))[0] == 4
    assert (await tensorbus(url, "policies", "set", "p", "a..b"))[0] == 1
