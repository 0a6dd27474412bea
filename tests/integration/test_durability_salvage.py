"""What docs/durability.md tells to do where the file of rows is damaged and there is no backup."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tensorbus.bus.client import Client
from tensorbus.bus.policies import PolicyConfig
from tensorbus.bus.testing import running_broker

GUIDE = Path(__file__).resolve().parents[2] / "docs/durability.md"
PAGE = 4096
"""Bytes of a page of the database."""
PATIENCE = 30.0


def script() -> str:
    """The block that begins in a data directory and ends with a scrub."""
    (block,) = re.findall(r"```\n( *cd bus-data && mv meta\.db .*?)```", GUIDE.read_text(), re.S)
    return textwrap.dedent(" " * 2 + block.lstrip())


@pytest.mark.parametrize("table", ["usage", "messages_by_topic"], ids=["table", "index"])
async def test_messages_are_saved_from_a_damaged_database(tmp_path: Path, table: str) -> None:
    """A page is overwritten: what can be read of the rows is served again, and counted as it was."""
    if shutil.which("sqlite3") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Debian's package sqlite3 is not installed")
    data = tmp_path / "bus-data"
    async with running_broker(data) as url, Client(url) as bus:
        await bus.set_policy("few", PolicyConfig("models.>", max_messages=3))
        for number in range(3):
            await bus.publish("models.a", {"w": np.full(50_000, number, np.float32)}, key=f"k{number}")
        topics = await bus.topics()
    with sqlite3.connect(data / "meta.db") as rows:
        (root,) = rows.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    rows.close()
    with (data / "meta.db").open("r+b") as file:
        file.seek((root - 1) * PAGE)
        file.write(b"\xff" * PAGE)

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tensorbus").symlink_to(Path(sys.executable).parent / "tensorbus")
    done = subprocess.run(
        ["sh", "-ec", script()],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    async with running_broker(data) as url, Client(url) as bus:
        assert await bus.topics() == topics
        assert (await bus.publish("models.a", b"again", key="k1")).duplicate
        await bus.publish("models.a", b"one more, for which the first goes", key="k3")
        async with asyncio.timeout(PATIENCE):  # it goes soon after
            while [info.key async for info in bus.messages()] != ["k1", "k2", "k3"]:
                await asyncio.sleep(0.01)
        for info in [info async for info in bus.messages()][:2]:
            model = await (await bus.fetch(info.id)).load()
            assert isinstance(model, dict)
