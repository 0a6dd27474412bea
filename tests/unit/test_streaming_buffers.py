"""Promises of the buffers: a fixed number, backpressure, and nobody left waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tensorbus.errors import TransferCancelled
from tensorbus.streaming.buffers import BufferPool, SliceBuffer


async def test_a_worker_waits_until_the_loop_gives_a_buffer_back() -> None:
    """The third buffer of a pool of two is one of the two, and comes when it is released."""
    pool = BufferPool(2, size=64)
    taken = [pool.acquire(), pool.acquire()]
    third = asyncio.create_task(asyncio.to_thread(pool.acquire))
    done, _ = await asyncio.wait([third], timeout=0.05)
    assert not done
    pool.release(taken[0])
    assert (await third) is taken[0]
    assert [len(buffer) for buffer in taken] == [64, 64]


async def test_closing_lets_a_blocked_worker_go() -> None:
    """A cancelled transfer never leaves a thread behind, and the pool stays closed."""
    pool = BufferPool(1)
    last = pool.acquire()
    started = threading.Event()

    def work() -> None:
        started.set()
        pool.acquire()

    worker = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.to_thread(started.wait)
    pool.close()
    with pytest.raises(TransferCancelled):
        await worker
    pool.release(last)
    with pytest.raises(TransferCancelled):
        pool.acquire()


def test_buffers_are_made_when_they_are_needed() -> None:
    """A pool that is never used up makes no more buffers than were in use at once."""
    pool = BufferPool(8, size=16)
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is first


def test_a_slice_buffer_grows_to_the_largest_slice() -> None:
    """And then stays as it is."""
    buffer = SliceBuffer()
    assert len(buffer.take(10)) == 10
    large = buffer.take(1000)
    assert buffer.take(500).obj is large.obj
    assert len(buffer.take(0)) == 0
