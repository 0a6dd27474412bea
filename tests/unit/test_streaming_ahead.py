"""Promises of encoding ahead: the same frames as with one thread, in order, and only a few ahead."""

# safetensors leaves parts of this function untyped.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tensorbus.bus.client import ClientSettings
from tensorbus.codecs.dtypes import dtype
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import InvalidRequest, NonFiniteValues
from tensorbus.streaming.ahead import buffers_for, default_threads, in_order
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerEncoder, EncodedFrame
from tensorbus.streaming.sources import ItemSource, open_source

PATIENCE = 60.0
"""Seconds after which a test that waits for another thread has failed."""


def workers() -> list[threading.Thread]:
    """The threads that work ahead, of whomever."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("tensorbus-ahead")]


# --- jobs ------------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """A job that notes who did it."""

    number: int
    detachable: bool = True
    failure: Exception | None = None
    by: list[str] = field(default_factory=list[str])

    def run(self, detached: bool) -> int:
        """Its number."""
        self.by.append(threading.current_thread().name)
        assert detached == threading.current_thread().name.startswith("tensorbus-ahead")
        if self.failure is not None:
            raise self.failure
        return self.number


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(threads: int) -> None:
    """Whatever thread made them; and the threads are gone at the end."""
    jobs = [Recorded(number, detachable=number % 3 != 0) for number in range(100)]
    assert list(in_order(jobs, threads)) == list(range(100))
    assert all(len(job.by) == 1 for job in jobs)
    assert not workers()


def test_one_thread_is_the_callers_own() -> None:
    """With 1 no other thread is started."""
    jobs = [Recorded(number) for number in range(3)]
    assert list(in_order(jobs, 1)) == [0, 1, 2]
    assert {name for job in jobs for name in job.by} == {threading.current_thread().name}


def test_what_is_not_detachable_is_done_in_order_by_the_caller() -> None:
    """So a source that can be read by one thread only is."""
    done: list[int] = []

    class Ordered(Recorded):
        def run(self, detached: bool) -> int:
            done.append(self.number)
            return super().run(detached)

    jobs = [Ordered(number, detachable=False) for number in range(20)]
    assert list(in_order(jobs, 4)) == done == list(range(20))
    assert {name for job in jobs for name in job.by} == {threading.current_thread().name}


def test_threads_work_at_the_same_time() -> None:
    """Three jobs that wait for one another get done by three threads."""
    together = threading.Barrier(3)

    class Meeting(Recorded):
        def run(self, detached: bool) -> int:
            together.wait(PATIENCE)
            return self.number

    assert list(in_order([Meeting(number) for number in range(6)], 3)) == list(range(6))


def test_an_error_comes_when_it_is_its_turn() -> None:
    """All that stood before it comes first, and nothing is at work afterwards."""
    jobs = [Recorded(number, failure=ValueError("lost") if number == 7 else None) for number in range(100)]
    results = in_order(jobs, 3)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="lost"):
        next(results)
    assert not workers()


def test_only_a_few_jobs_are_begun_ahead() -> None:
    """One more than there are threads, beyond those whose results were asked for."""
    begun: list[int] = []

    def jobs() -> Iterator[Recorded]:
        for number in range(50):
            begun.append(number)
            yield Recorded(number)

    results = in_order(jobs(), 3)
    for asked in range(1, 20):
        next(results)
        assert len(begun) == asked + 3
    results.close()
    assert len(begun) == 22


def test_giving_up_leaves_no_job_at_work() -> None:
    """``close`` waits for the jobs that were begun; those that were not are never done."""
    release, started = threading.Event(), threading.Semaphore(0)
    done: list[int] = []

    class Slow(Recorded):
        def run(self, detached: bool) -> int:
            if self.number:
                started.release()
                assert release.wait(PATIENCE)
            done.append(self.number)
            return self.number

    results = in_order([Slow(number) for number in range(10)], 2)
    assert next(results) == 0
    for _ in range(2):
        assert started.acquire(timeout=PATIENCE)
    closing = threading.Thread(target=results.close)
    closing.start()
    release.set()
    closing.join(PATIENCE)
    assert not closing.is_alive() and not workers()
    assert {1, 2} <= set(done) <= {0, 1, 2, 3}


# --- messages --------------------------------------------------------------------------------------------


def container() -> dict[str, np.ndarray]:
    """Tensors of several slices, of one, and of a few bytes; contiguous and not."""
    generator = np.random.default_rng(0)
    return {
        "large": generator.standard_normal((3001, 2048), np.float32),
        "strided": generator.standard_normal((1500, 1501), np.float32).T,
        "bias": generator.standard_normal(70, np.float32),
        "counts": np.arange(2_000_000),
        "huge values": (generator.standard_normal(500_000) * 1e6).astype(np.float32),
    }


def sent(encoder: ContainerEncoder, threads: int) -> tuple[bytes, list[EncodedFrame]]:
    """The message as a client sends it: with its number of buffers, each given back one frame later."""
    pool = BufferPool(buffers_for(threads), make=encoder.new_buffer)
    data, frames = bytearray(), list[EncodedFrame]()
    for frame in encoder.frames(pool.acquire, threads):
        if frames and frames[-1].buffer is not None:
            pool.release(frames[-1].buffer)
        data += frame.head + frame.payload
        frames.append(frame)
    return bytes(data), frames


@pytest.mark.parametrize("codec", ["none", "fp16", "int8", "nf4", "nf4-dq", "rotate | nf4"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_every_number_of_threads_gives_the_same_bytes(tmp_path: Path, kind: str, codec: str) -> None:
    """And the same counts of clipped values, from memory and from a file, with the buffers of a client."""
    arrays = {name: np.ascontiguousarray(array) for name, array in container().items()}
    save_file(arrays, tmp_path / "model.safetensors")
    messages: list[tuple[bytes, dict[str, int]]] = []
    for threads in (1, 2, 4):
        source = open_source(container() if kind == "memory" else tmp_path / "model.safetensors")
        encoder = ContainerEncoder(source, Pipeline.parse(codec), {})
        messages.append((sent(encoder, threads)[0], encoder.clipped))
        source.close()
    assert messages[0] == messages[1] == messages[2]
    assert bool(messages[0][1]) == (codec == "fp16")


def test_the_error_names_the_item_after_all_frames_before_it() -> None:
    """A NaN in a late slice does not spoil what comes before."""
    arrays = {"a": np.ones(5_000_000, np.float32), "b": np.ones(5_000_000, np.float32)}
    arrays["b"][-1] = np.nan
    encoder = ContainerEncoder(open_source(arrays), Pipeline.parse("nf4"), {})
    frames = encoder.frames(lambda: memoryview(bytearray(1 << 20)), 4)
    slices = [frame.item for frame in islice(frames, 7)][2:]  # behind the open frame and the manifest
    assert slices == ["a", "a", "a", "b", "b"]
    with pytest.raises(NonFiniteValues, match="'b'"):
        next(frames)
    assert not workers()


class OneByOne(Item):
    """As third parties write items: ``read`` fills one buffer again and again, and counts on the order."""

    def __init__(self, name: str, shared: bytearray, reads: list[tuple[str, int]]) -> None:
        self.spec = ItemSpec(name, dtype("float32"), (5_000_000,))
        self._shared = shared
        self._reads = reads

    def read(self, offset: int, count: int) -> memoryview:
        self._reads.append((threading.current_thread().name, offset))
        values = np.frombuffer(self._shared, np.float32)[:count]
        values[:] = np.sin(np.arange(offset, offset + count))
        return memoryview(self._shared)[: 4 * count]


@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_a_source_for_one_thread_is_read_by_one_thread(codec: str) -> None:
    """An item that does not say that it is concurrent is read in order, and its buffer is never shared."""
    messages: list[bytes] = []
    for threads in (1, 4):
        shared, reads = bytearray(8 << 20), list[tuple[str, int]]()
        items = [OneByOne("a", shared, reads), OneByOne("b", shared, reads)]
        encoder = ContainerEncoder(ItemSource("numpy", items), Pipeline.parse(codec), {})
        messages.append(sent(encoder, threads)[0])
        assert {name for name, _ in reads} == {threading.current_thread().name}
        offsets = [offset for _, offset in reads]
        assert offsets == 2 * sorted(set(offsets))
    assert messages[0] == messages[1]


# --- how many --------------------------------------------------------------------------------------------


def test_by_default_there_are_as_many_threads_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the process may use, and no more than four; TENSORBUS_THREADS sets another number."""
    monkeypatch.delenv("TENSORBUS_THREADS", raising=False)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert default_threads() == ClientSettings().threads == min(4, usable)
    monkeypatch.setenv("TENSORBUS_THREADS", "7")
    assert default_threads() == ClientSettings().threads == 7
    assert ClientSettings(threads=3).threads == 3


@pytest.mark.parametrize("text", ["0", "-1", "65", "2.5", "many"])
def test_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A number from 1 to 64 it has to be, and the error says where it was not."""
    monkeypatch.setenv("TENSORBUS_THREADS", text)
    with pytest.raises(InvalidRequest, match="TENSORBUS_THREADS"):
        ClientSettings()


@pytest.mark.parametrize("threads", [0, 65, True])
def test_other_settings_are_refused(threads: int) -> None:
    """In the settings too."""
    with pytest.raises(InvalidRequest, match="threads"):
        ClientSettings(threads=threads)
