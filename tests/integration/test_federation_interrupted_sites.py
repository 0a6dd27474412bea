"""Sites that are killed, or stopped by Ctrl-C, in the midst of a transfer: what they send counts once."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec, seed_topic, updates_topic
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.sync import SyncParticipant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client, Progress
from tensorbus.bus.client.portal import Portal
from tensorbus.bus.client.sync import SyncClient
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline

Arrays = dict[str, npt.NDArray[Any]]

PROCESS = Path(__file__).with_name("killable_site.py")
PATIENCE = 60.0
COUNT = 3 << 20
"""Elements of the model: 12 MiB, which goes by a resumable upload."""
SPEC = JobSpec("sft", sites=1, rounds=1, quorum=1, deadline=600)


def spec(up: str) -> JobSpec:
    """One round of one site whose updates are sent like this."""
    return replace(SPEC, up=Pipeline.parse(up).to_json())


# --- killed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", ["delta | clip:2000 | gauss:0.00025 | none", "delta | clip:100 | nf4"])
async def test_a_site_that_is_killed_while_it_sends_is_clipped_and_noised_once(
    tmp_path: Path, up: str
) -> None:
    """Where its noise is drawn anew, it sends all of the update again: never two halves, nor noise twice."""
    told: list[Event] = []
    async with asyncio.timeout(PATIENCE), running_broker(tmp_path / "broker") as url, Client(url) as bus:
        await bus.publish(seed_topic("sft"), {"w": np.zeros(COUNT, np.float32)})
        job = asyncio.create_task(Aggregator(bus, spec(up), init=None, listener=told.append).run())
        at = 8 << 20 if "none" in up else 1 << 20
        assert (await train(url, tmp_path / "state", str(at)))[0] == -signal.SIGKILL
        assert [each.state for each in await bus.open_messages(updates_topic("sft"))] == ["open"]
        code, resumed = await train(url, tmp_path / "state")
        assert (code, resumed > 0) == (0, "gauss" not in up)  # without noise the bytes are the same
        final = await job
        assert await bus.open_messages(updates_topic("sft")) == []
        change = cast(Arrays, await final.load())["w"].astype(np.float64)
    assert [event.fields["updates"] for event in told if event.name == "folded"] == [1]
    norm = np.sqrt(COUNT)  # of a change of 1 in each value
    if "gauss" in up:
        # Noise of 0.00025 · 2000, which the mean of so many values hardly feels; twice would be √2 of it.
        assert abs(change.mean() - 1) < 0.005
        assert abs(change.std() - 0.5) < 0.005
        halves = [change[: COUNT // 2].std(), change[COUNT // 2 :].std()]
        assert max(halves) - min(halves) < 0.005
    else:
        assert np.abs(change - 100 / norm).max() < 0.01 * 100 / norm


async def train(url: str, state: Path, *arguments: str) -> tuple[int, int]:
    """A process of the site: its exit code, and how many bytes of its update were there already."""
    command = [sys.executable, str(PROCESS), url, str(state), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return cast(int, process.returncode), int(out or 0)


# --- Ctrl-C ---------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> Generator[str]:
    """A broker in a thread of its own, with a job that waits for one update."""
    stack = AsyncExitStack()
    portal = Portal()
    running: list[asyncio.Task[GlobalModel]] = []

    async def start() -> str:
        address = await stack.enter_async_context(running_broker(tmp_path / "broker"))
        bus = await stack.enter_async_context(Client(address))
        await bus.publish(seed_topic("sft"), {"w": np.zeros(COUNT, np.float32)})
        job = Aggregator(bus, spec("delta | feedback | int8"), init=None, listener=lambda _: None)
        running.append(asyncio.create_task(job.run()))
        return address

    async def stop() -> None:
        await asyncio.wait_for(running[0], PATIENCE)
        await stack.aclose()

    try:
        yield portal.call(start)
        portal.call(stop)
    finally:
        portal.close()


class Interrupts:
    """Ctrl-C in the main thread, when a transfer has come so far; it does not go on before that is heard."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        signal.signal(signal.SIGINT, self._hear)

    def __call__(self, progress: Progress) -> None:
        if not self.heard.is_set() and progress.bytes_on_wire > 1 << 20:
            signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)
            assert self.heard.wait(PATIENCE)

    def _hear(self, *_: object) -> None:
        self.heard.set()
        raise KeyboardInterrupt


@pytest.fixture
def sigint() -> Generator[None]:
    """What stood there before is put back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("own_client", [True, False])
def test_a_loop_that_is_left_by_ctrl_c_goes_on_when_it_is_run_again(
    url: str, tmp_path: Path, sigint: None, own_client: bool
) -> None:
    """In the same process, as in a notebook, where what was interrupted is still at hand: while it loads, and
    while it submits. The state folder is free, and the update counts once.
    """
    kept: list[BaseException] = []  # with all of its frames
    made: list[Arrays] = []

    def run(**progress: Any) -> None:
        client = url if own_client else SyncClient(url)
        try:
            with SyncParticipant(client, job="sft", site="a", state=tmp_path / "state", **progress) as site:
                for task in site.rounds():
                    model = cast(Arrays, task.load())
                    assert task.submit({"w": model["w"] + np.float32(1)}, num_examples=1)
                made.append(cast(Arrays, site.final.load()))
        finally:
            if isinstance(client, SyncClient):
                client.close()

    for direction in ("down", "up"):
        with pytest.raises(KeyboardInterrupt) as caught:
            run(**{direction: Interrupts()})
        kept.append(caught.value)
    run()
    np.testing.assert_allclose(made[0]["w"], 1, atol=0.01)
    assert not (tmp_path / "state" / "sft--a").exists()
