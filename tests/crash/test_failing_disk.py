"""A disk that fails, or is full, now and then: nothing acknowledged is touched, and the rest is told."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from crashing.disks import SYNCS, WRITES, FailingDisk, small_disk
from crashing.payloads import payload, sha256, unpack
from crashing.wire import Unreachable, Wire
from crashing.world import Plan, World

CONSUMERS = {"all": {"filter": "crash.>", "ack_wait": 1.0, "max_ack_pending": 32}}
MIB = 1 << 20


def settled(world: World) -> None:
    """All ends well: what was begun is finished, and the history is a good one."""
    world.finish()
    world.audit()
    world.kill_broker()
    world.audit_files()
    world.start_broker()
    violations = world.violations()
    assert not violations, "\n".join(map(str, violations[:20]))


@pytest.mark.parametrize("seed", range(2))
def test_a_disk_that_fails_now_and_then(tmp_path: Path, seed: int) -> None:
    """Writes and syncs fail (some writes half done), for a while, at random; the broker is also killed in the
    midst of it. Publishers and workers are told, try again, and in the end everything holds.
    """
    chance = random.Random(seed)
    data = tmp_path / "data"
    disk = FailingDisk(tmp_path, data)
    plan = Plan(CONSUMERS, environment=disk.environment, troubled=True)
    with World(tmp_path, plan, seed, data) as world:
        world.start_broker()
        world.start_others()
        rounds = 0
        while rounds < 12 or disk.failed <= 50:
            rounds += 1
            assert rounds <= 60, f"of all calls {disk.failed} failed; the test proves nothing"
            calls = chance.choice((WRITES, SYNCS, WRITES | SYNCS))
            error = chance.choice((errno.EIO, errno.ENOSPC))
            only = chance.choice(("", "", ".frames", "meta.db"))
            disk.fail(calls, permille=chance.choice((30, 300, 1000)), error=error, only=only)
            time.sleep(chance.uniform(0.1, 0.6))
            # After a commit that may or may not have reached the disk, the broker only reads until it is
            # started again; that is for whoever runs it, and for us.
            killed = chance.random() < 0.5
            if killed:
                world.kill_broker()
            disk.work()
            if not killed and not world.ready:
                assert world.stop_broker() == 0
                killed = True
            if killed:
                world.start_broker()
            time.sleep(chance.uniform(0.1, 0.4))
        settled(world)
        seen = Counter(event.what for event in world.events())
        assert seen["stored"] > 20 and seen["acked"] > 20


def test_a_commit_that_fails_and_then_a_kill(tmp_path: Path) -> None:
    """The row of a message may have reached the disk though its commit failed, and a kill lets recovery find
    it. Its key must then stand for a whole message, or for none.
    """
    data = tmp_path / "data"
    disk = FailingDisk(tmp_path, data)
    with World(tmp_path, Plan({}, environment=disk.environment), 1, data) as world:
        for size in (100, 3 * MIB):
            world.start_broker()
            wire, content = Wire(world.port), b"x" * size
            before = wire.call("POST", "/v1/topics/t/messages", content)
            assert before.status == 201
            disk.fail(SYNCS, only="meta.db-wal")
            key = {"Idempotency-Key": f"k{size}"}
            assert wire.call("POST", "/v1/topics/t/messages", content, key).status >= 500
            # As long as the broker could clean up behind the failure, if it does.
            time.sleep(0.2)
            world.kill_broker()
            disk.work()
            world.start_broker()
            wire = Wire(world.port)
            again = wire.call("POST", "/v1/topics/t/messages", content, key)
            assert again.status in (200, 201), again
            for receipt in (before.json, again.json):
                answer = wire.call("GET", f"/v1/messages/{receipt['id']}/frames")
                assert answer.status == 200, (again, answer)
                assert unpack(answer.body) == content
            world.kill_broker()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """On a small disk, with kills: what does not fit is refused, what was acknowledged is kept, and when
    something else gives the space back, the publishers go on.
    """
    with small_disk(tmp_path / "disk", "160m") as disk:
        plan = Plan(CONSUMERS, troubled=True)
        with World(tmp_path, plan, 3, disk / "data") as world:
            world.start_broker()
            world.start_others()
            hog = disk / "hog"
            for left in (17 * MIB, 3 * MIB, 0):
                _fill(hog, left)
                world.kill_at_random(4)
                hog.unlink()
                world.kill_at_random(2)
            settled(world)
            seen = Counter(event.what for event in world.events())
            assert seen["stored"] > 20
            assert " 507 " in world.broker_log, "the disk was never full; the test proves nothing"


def _fill(hog: Path, left: int) -> None:
    """Take all but ``left`` bytes of a disk; with 0, to the last one that it gives."""
    disk = os.statvfs(hog.parent)
    size = disk.f_bavail * disk.f_frsize - left
    with hog.open("wb", buffering=0) as file:
        try:
            for _ in range(0, size, 64 << 10):
                file.write(bytes(64 << 10))
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise


def test_a_full_disk_takes_no_message_and_keeps_the_rest(tmp_path: Path) -> None:
    """With every write failing for want of space, each publish is refused with 507 and leaves nothing."""
    data = tmp_path / "data"
    disk = FailingDisk(tmp_path, data)
    with World(tmp_path, Plan({}, environment=disk.environment), 1, data) as world:
        world.start_broker()
        wire = Wire(world.port)
        kept = wire.call("POST", "/v1/topics/t/messages", payload("a")).json
        disk.fail(WRITES, error=errno.ENOSPC)
        for size in (100, 100_000, 3 * MIB):
            try:
                assert wire.call("POST", "/v1/topics/t/messages", bytes(size)).status == 507
            except Unreachable:
                pass  # refused before the body was sent, and the connection closed
        disk.work()
        listed = wire.call("GET", "/v1/messages").json["messages"]
        assert [one["id"] for one in listed] == [kept["id"]]
        frames = wire.call("GET", f"/v1/messages/{kept['id']}/frames").body
        assert sha256(unpack(frames)) == sha256(payload("a"))
        assert wire.call("POST", "/v1/topics/t/messages", bytes(3 * MIB)).status == 201
