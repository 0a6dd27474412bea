"""Law 2 and law 6 with every process killed, at random moments, again and again."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from crashing.library_worker import CONSUMER
from crashing.world import Plan, World

KILLS = int(os.environ.get("TENSORBUS_CRASH_KILLS", "200"))
SEED = int(os.environ.get("TENSORBUS_CRASH_SEED", "0")) or time.time_ns() % 1_000_000
ROUND = 200
"""Kills between two audits."""

CONSUMERS = {
    "all": {"filter": "crash.>", "ack_wait": 1.0, "max_ack_pending": 32},
    "some": {"filter": "crash.t1", "ack_wait": 0.5},
    "strict": {"filter": "crash.t2", "backoff": [0.3, 0.6, 0.9], "max_deliver": 3},
    "queue": {"filter": "queue.>", "ack_wait": 0.5, "max_deliver": 5},
    "interested": {"filter": "crash.interest", "ack_wait": 0.5},
    "library": CONSUMER,
}
"""The last one is worked for by the library; plain workers share the others."""
POLICIES = {
    "queue": {"filter": "queue.>", "retention": "workqueue", "max_messages": 500, "discard": "new"},
    "interest": {"filter": "crash.interest", "retention": "interest"},
    "limits": {"filter": "limits.>", "max_messages": 12},
    "full": {"filter": "full.>", "max_messages": 16, "discard": "new"},
}
TOPICS = ("crash.t0", "crash.t1", "crash.t2", "crash.interest", "queue.a", "limits.a", "full.a")
PLAN = Plan(
    CONSUMERS,
    POLICIES,
    TOPICS,
    publishers=2,
    workers=3,
    library_publishers=1,
    library_workers=1,
    weights={"broker": 10, "publisher": 5, "worker": 4, "library_publisher": 3, "library_worker": 2},
    pace=0.2,
    work=1,
)


def test_no_kill_breaks_a_promise(tmp_path: Path) -> None:
    """No acknowledged message is lost, none is delivered corrupt, none after a confirmed ack, each key is
    stored once, consumers go on where they were, policies remove what they should and no more, and nothing is
    left behind.
    """
    print(f"TENSORBUS_CRASH_SEED={SEED} repeats these choices")
    with World(tmp_path, PLAN, SEED) as world:
        world.start_broker()
        left = KILLS
        while left:
            world.start_others()
            world.kill_at_random(now := min(ROUND, left))
            left -= now
            world.finish()
            world.audit()
            world.kill_broker()
            world.audit_files()
            world.start_broker()
            violations = world.violations()
            assert not violations, "\n".join(map(str, violations[:20]))
        seen = Counter(event.what for event in world.events())
        print(f"{sum(world.kills.values())} kills {world.kills}, {dict(seen)}")
    assert sum(world.kills.values()) == KILLS
    assert seen["stored"] >= KILLS and seen["acked"] >= KILLS, "too little happened to prove anything"
