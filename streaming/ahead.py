"""Ahead: the slices of a message are made by a few threads before they are asked for, and come in order.

Strategy. Whoever asks for the next slice hands out jobs until there is one more than there are threads, and
then waits for the first. So each thread has work while the caller is busy sending, and what is made but not
yet asked for is bounded. A job's buffer is taken before it is handed out, in the order of the slices, so that
the first slice never waits for a buffer that a later one holds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from tensorbus.errors import InvalidRequest

MOST = 4
"""Threads by default, at most: more are faster than any network that a message is sent over."""
LIMIT = 64
"""Threads that can be asked for."""
VARIABLE = "TENSORBUS_THREADS"
"""The environment variable that sets how many there are by default."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Job(Protocol[T_co]):
    """One piece of work.

    Attributes:
        detachable: whether another thread may do it; if not, it is done, in order, by the thread that asks.
    """

    @property
    def detachable(self) -> bool: ...

    def run(self, detached: bool) -> T_co:
        """Do it; ``detached`` says whether this is another thread than the one that asks."""
        ...


def in_order(jobs: Iterable[Job[T]], threads: int) -> Generator[T]:
    """What the jobs make, in their order; an exception comes when it is its job's turn.

    The threads are started when they are first needed. Once this has ended, or was closed half-way, they are
    gone, and no job is at work.

    Args:
        threads: that work for the caller; 1 for none but the caller's own.
    """
    if threads == 1:
        for job in jobs:
            yield job.run(detached=False)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="tensorbus-ahead") as pool:
        made: deque[Future[T]] = deque()
        try:
            for job in jobs:
                made.append(pool.submit(job.run, detached=True) if job.detachable else _done(job))
                if len(made) > threads:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for future in made:
                future.cancel()


def _done(job: Job[T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(job.run(detached=False))
    except Exception as error:
        future.set_exception(error)
    return future


def buffers_for(threads: int) -> int:
    """Buffers that a sender needs who holds one himself, of jobs that take one each."""
    return 2 if threads == 1 else threads + 2


def default_threads() -> int:
    """What TENSORBUS_THREADS says, or as many as this process has processors, up to 4.

    Raises:
        InvalidRequest: it says something else than a number from 1 to 64.
    """
    if text := os.environ.get(VARIABLE):
        return check_threads(int(text) if text.isdecimal() else text, VARIABLE)
    if hasattr(os, "sched_getaffinity"):
        return min(MOST, len(os.sched_getaffinity(0)))
    return min(MOST, os.cpu_count() or 1)


def check_threads(threads: object, name: str = "threads") -> int:
    """``threads``, once it is known to be a number of threads.

    Raises:
        InvalidRequest: it is not.
    """
    if type(threads) is not int or not 1 <= threads <= LIMIT:
        raise InvalidRequest(f"{name} is a number from 1 to {LIMIT}, not {threads!r}")
    return threads
