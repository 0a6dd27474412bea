"""Rounds end, and count each update once, whatever happens to broker, aggregator and sites."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from chaos.archive import Archive
from chaos.offline import Counted, aggregate, read, read_model, weight_of
from chaos.training import Arrays
from chaos.world import SITES, World

ROUNDS = int(os.environ.get("TENSORBUS_CHAOS_ROUNDS", "4"))
SEED = os.environ.get("TENSORBUS_CHAOS_SEED", "") or str(time.time_ns() % 1_000_000)
ALPHA, STALENESS, DEADLINE = 0.5, 2, 2.0
COMMON = ("--deterministic", "--staleness", str(STALENESS), "--alpha", str(ALPHA))
MODES = {
    "rounds": ((*COMMON, "--quorum", "5"), ROUNDS),
    "buffered": (
        (*COMMON, "--buffered", "5", "--quorum", "3", "--accumulator", "file", "--up", "delta | int8"),
        max(2, ROUNDS // 2),
    ),
}
"""Options of the aggregator, and the rounds of the run. Without a mode the updates are whole."""


@pytest.mark.parametrize("mode", list(MODES))
def test_every_round_ends_and_counts_each_update_once(tmp_path: Path, mode: str) -> None:
    """Eight sites. In each round some are killed, paused, doubled and delayed at random, now and then broker
    and aggregator are killed, and the aggregator is paused or doubled.

    Every model is the one that the stored updates of the round's roster come to, bit for bit; no site's
    update of any version is in two rosters; none that came in time is in none. In the end everybody has the
    same final model, and every process ends by itself.
    """
    print(f"\nTENSORBUS_CHAOS_SEED={SEED} repeats these choices")
    options, rounds = MODES[mode]
    with World(tmp_path, options, rounds, DEADLINE, SEED) as world:
        longest = world.run()
        archive, dealt = world.archive, world.dealer.dealt
        finals = world.finals()
    assert archive.complete > rounds, "the archive lacks something"
    assert len(set(finals)) == 1, finals
    counted = check_rosters(archive, rounds)
    check_models(archive, rounds)
    late = sum(count for behind, count in counted.items() if behind)
    print(f"{rounds} rounds of {mode}, the longest {longest:.1f} s: {dict(dealt)}")
    print(f"{counted.total()} updates counted, {late} of them late; {len(archive.updates)} stored")
    assert counted.total() >= 3 * rounds, "too little happened to prove anything"
    for deed in ("site kill", "site pause", "site double", "broker kill"):
        assert dealt[deed], f"there was no {deed}"


def check_rosters(archive: Archive, rounds: int) -> Counter[int]:
    """Each update at most once, and at least once if it was in time; how many were how late."""
    seen: set[tuple[str, int]] = set()
    behind: Counter[int] = Counter()
    for number in range(1, rounds + 1):
        entries = archive.rosters[number][0].entries
        assert len(entries) >= 3
        for entry in entries:
            headers = archive.updates[entry.message].headers
            assert (entry.site, entry.number) == (headers["site"], headers["round"])
            assert entry.site in SITES and 0 <= number - entry.number <= STALENESS
            assert (entry.site, entry.number) not in seen, f"{entry} is counted again in round {number}"
            assert entry.weight == weight_of(headers["num_examples"], number - entry.number, ALPHA)
            seen.add((entry.site, entry.number))
            behind[number - entry.number] += 1
    for update in archive.updates.values():
        answer = str(update.headers["site"]), update.number
        if update.number <= rounds - STALENESS and update.seq < archive.rosters[update.number][1].seq:
            assert answer in seen, f"{answer} was stored before its round was closed, and never counted"
    return behind


def check_models(archive: Archive, rounds: int) -> None:
    """Each is what the one before and the updates to it come to."""
    models: dict[int, Arrays] = {}
    for number in range(1, rounds + 2):
        models[number] = read_model(archive.models[number].path)
    for number in range(1, rounds + 1):
        counted = [
            Counted(read(archive.updates[entry.message].path), entry.weight, entry.number)
            for entry in archive.rosters[number][0].entries
        ]
        same(aggregate(number, models, counted), models[number + 1], number)


def same(offline: Arrays, published: Arrays, number: int) -> None:
    """Bit for bit."""
    names: Sequence[str] = list(published)
    assert names == list(offline)
    for name in names:
        expected, found = offline[name], published[name]
        assert expected.dtype == found.dtype
        differing = (expected.view("u1") != found.view("u1")).sum()
        assert not differing, f"round {number}: {differing} bytes of {name!r} differ"
