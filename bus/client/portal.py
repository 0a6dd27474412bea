"""Portal: an event loop in a thread of its own, for callers that have none.

A call hands a coroutine over and waits. So heartbeats go on while the caller trains, and Ctrl-C in the caller
cancels what it waits for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, TypeVar

from tensorbus.errors import ClientClosed

T = TypeVar("T")


class Portal:
    """Runs coroutines for threads that have no event loop. Use it as a context manager, or `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._lock = threading.Lock()  # nothing may be handed to a loop that is about to stop
        self._thread = threading.Thread(target=self._run, name="tensorbus-portal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the coroutines run."""
        return self._loop

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the coroutine that ``make`` gives; what it raises is raised here.

        Raises:
            ClientClosed: the portal is closed, or was while this was waited for.
            RuntimeError: it is called from an event loop, which it would hold up; use the async client there.
        """
        if _runs_a_loop():
            raise RuntimeError("an event loop runs in this thread; use the async client in it")
        future = self._begin(make)
        try:
            return future.result()
        except CancelledError:
            if self._closed:
                raise ClientClosed("this client was closed by another thread") from None
            raise
        except BaseException:
            # Not only Ctrl-C: whatever ends the waiting ends the work.
            future.cancel()
            raise

    def finish(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """As `call`, for what cleans up behind a generator: from wherever that is let go of.

        Python may do so in any thread, also in that of an event loop: then nothing is waited for. A closed
        portal has cleaned up already.
        """
        try:
            if _runs_a_loop():
                self._begin(make)
            else:
                self.call(make)
        except ClientClosed:
            pass

    def _begin(self, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        with self._lock:
            if self._closed:
                raise ClientClosed("this client is closed")
            return asyncio.run_coroutine_threadsafe(make(), self._loop)

    @contextmanager
    def iterating(self, generator: AsyncGenerator[T]) -> Generator[Generator[T]]:
        """An async generator as a plain one, which is closed when the block is left."""

        def values() -> Generator[T]:
            while True:
                try:
                    value = self.call(lambda: anext(generator))  # pyright: ignore[reportArgumentType]
                except StopAsyncIteration:
                    return
                yield value

        try:
            yield values()
        finally:
            self.finish(generator.aclose)

    def close(self) -> None:
        """End the thread; what still runs in it is cancelled. May be called twice."""
        if _runs_a_loop():
            raise RuntimeError("an event loop runs in this thread; use the async client in it")
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            ended = asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop)
            try:
                ended.result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _cancel_others() -> None:
    """Cancel every other task of this loop, and let them end."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
