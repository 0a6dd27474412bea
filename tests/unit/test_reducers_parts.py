"""Slices that several threads fold at the same time: the same bits, and the same refusals."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from modelling.federated import Array, Federation, encoded
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.parts import SMALLEST, PartThreads
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.errors import NonFiniteValues
from tensorbus.streaming.decoder import SliceEvent

COUNT = 5 * SMALLEST + 4321
CODECS = ["none", "bf16", "int8", "nf4-dq", "uniform", "lossless", "delta | nf4", "delta | rotate | lloyd:2"]


async def mean(
    monkeypatch: pytest.MonkeyPatch, federation: Federation, threads: int, *, exact: bool
) -> Array:
    """The tensor of the next model."""
    monkeypatch.setenv("TENSORBUS_THREADS", str(threads))
    workspace = Workspace(lambda: Path("unused"), deterministic=exact)
    reducer = ReducerSpec.parse("mean").build(federation.layout, workspace)
    try:
        made = (await federation.round(reducer))["w"]
        assert isinstance(made, np.ndarray)
        return made
    finally:
        await reducer.aclose()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("codec", CODECS)
async def test_any_number_of_threads_makes_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, codec: str, exact: bool
) -> None:
    """Of whole updates and of changes, summed exactly, where threads share the work, or in floats."""
    random = np.random.default_rng(1)
    federation = Federation()
    federation.model(3, {"w": random.normal(size=COUNT).astype(np.float32)})
    for at in range(3):
        values = {"w": random.normal(size=COUNT).astype(np.float32)}
        federation.update(f"s{at}", values, codec, weight=1.0 + at / 3)
    alone = await mean(monkeypatch, federation, 1, exact=exact)
    for threads in (2, 3):
        assert np.array_equal(await mean(monkeypatch, federation, threads, exact=exact), alone)


async def slices(codec: str, values: Array) -> list[SliceEvent]:
    """Those of one tensor."""
    update = encoded("a", {"w": values}, codec, frame_bytes=16 << 20)
    return [event async for event in update.slices()]


async def test_every_element_is_in_one_part_and_each_part_has_a_thread() -> None:
    """Parts are no smaller than is worth a thread, and a small slice is folded where it is."""
    [event] = await slices("nf4", np.zeros(COUNT, np.float32))
    parts = PartThreads(4)
    met = threading.Barrier(4)
    seen: list[tuple[int, int]] = []

    def fold(part: SliceEvent) -> None:
        met.wait(30)  # all at the same time, or never
        seen.append((part.offset, part.offset + part.count))

    parts.run(event, fold)
    bounds = [0, *(stop for _, stop in sorted(seen))]
    assert sorted(seen) == list(pairwise(bounds)) and bounds[-1] == COUNT
    assert all(stop - start >= SMALLEST for start, stop in seen[:-1])
    [small] = await slices("nf4", np.zeros(SMALLEST - 1, np.float32))
    where: list[int] = []
    parts.run(small, lambda part: where.append(threading.get_ident()))
    assert where == [threading.get_ident()]
    parts.close()


@pytest.mark.parametrize("at", [0, COUNT - 1])
async def test_a_bad_value_is_found_in_whatever_part_it_is(at: int) -> None:
    """And no thread is at work any more when the update is refused."""
    values = np.zeros(COUNT, np.float32)
    values[at] = np.nan
    [event] = await slices("none", values)
    parts = PartThreads(3)
    at_work: set[int] = set()

    def fold(part: SliceEvent) -> None:
        at_work.add(part.offset)
        try:
            part.codec.accumulate(part.payload, part.offset, np.zeros(part.count, np.float32), 1.0)
        finally:
            at_work.discard(part.offset)

    with pytest.raises(NonFiniteValues):
        parts.run(event, fold)
    assert not at_work
    parts.close()
