"""Runs of frames in pieces of one size, wherever the pieces are.

Strategy. The frames of a message are one run of bytes, cut into pieces of a fixed size, so that a byte's
piece is known without an index. Only the last piece is shorter. While a run is being written its last piece
is in this process's memory, and is stored in between, each time over the one before, so that another process
can go on with it. What is written goes out as soon as a piece is full, a few pieces at a time; what is read
is asked for a few pieces ahead.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

from tensorbus.errors import StorageError, StoreDamaged

from .base import FrameFile, Part
from .values import Disk

_UNDER_WAY = 4
"""Pieces of one run that are written and not stored yet."""
_AHEAD = 3
"""Pieces that are asked for before they are wanted."""
_CACHED = 64 << 20
"""Bytes of pieces that are kept for readers, of all messages together."""
_OWN = 8
"""Pieces that are kept for a reader of what may change."""
_EPOCHS = threading.Lock()


class Pieces(ABC):
    """Stores pieces. Any thread may call; results come as futures.

    Attributes:
        size: bytes of a piece.
        term: of this broker's lead.
    """

    size: int = 512 << 10
    term: int = 0
    _epochs: int = 0

    def epoch(self) -> int:
        """A number for whoever is about to write a run: greater than all that were given out before, by
        this broker or by those that have led before it. What was written in an earlier epoch can be written
        over. Belongs to the event loop and the threads of the broker that leads."""
        with _EPOCHS:
            self._epochs += 1
            return (self.term << 32) + self._epochs

    @abstractmethod
    def put(self, run: str, number: int, data: bytes, before: int, epoch: int = 0) -> Future[int]:
        """Store a piece; the version that it has then.

        ``before`` is the version that it replaces, 0 if there is none: a writer that was taken for dead and
        is not cannot write over what another has gone on with, whose ``epoch`` is later; but that one over
        what it still wrote. 0 is the beginning of this broker's lead. Fails with StorageError.
        """

    @abstractmethod
    def get(self, run: str, number: int, size: int | None) -> Future[tuple[bytes, int] | None]:
        """A piece and its version; None if it is not there.

        ``size`` is how many bytes it should have, if a copy will do, which may lag behind; None asks for
        what is stored for certain. Fails with StorageError.
        """

    @abstractmethod
    def count(self, run: str) -> Future[int]:
        """How many pieces there are of a run from its first on, without a gap. Fails with StorageError."""

    @abstractmethod
    def cut(self, run: str, number: int) -> Future[None]:
        """Remove all pieces from ``number`` on. Fails with StorageError."""

    @abstractmethod
    def clear(self, run: str) -> Future[None]:
        """Remove a run. Fails with StorageError."""

    @abstractmethod
    def runs(self, seen: int) -> Future[tuple[Collection[str], int]]:
        """Some more runs that there are pieces of, and how many pieces these were: to be added to ``seen``.

        No pieces is the end. Fails with StorageError.
        """

    @abstractmethod
    def age(self, run: str) -> Future[float]:
        """Seconds since the last piece of a run was stored. Fails with StorageError."""

    @abstractmethod
    def disk(self) -> Future[Disk]:
        """What there is for frames. Fails with StorageError."""

    @abstractmethod
    def check_room(self, size: int) -> None:
        """Raise StorageFull if ``size`` more bytes would not fit now."""


class Runs:
    """The runs of a store. All methods block.

    Attributes:
        lent: runs that another broker writes.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.cache = Cache(pieces)
        self.lent: set[str] = set()
        self._writing: dict[str, RunFile] = {}
        self._left: dict[str, RunFile] = {}
        self._readers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def create(self, run: str, dropped: Callable[[str], None], epoch: int | None = None) -> RunFile:
        """An empty run; ``dropped`` is told if it is given up. Without an ``epoch``, a new one begins."""
        return self._opened(RunFile(self, run, self._epoch(epoch), dropped))

    def reopen(
        self, run: str, size: int, dropped: Callable[[str], None], epoch: int | None = None
    ) -> RunFile:
        """A run, cut to its first ``size`` bytes, to go on behind them. Raises StorageError."""
        self._settle(run)
        epoch = self._epoch(epoch)
        whole, rest = divmod(size, self.pieces.size)
        if not rest:
            self.pieces.cut(run, whole).result()
            return self._opened(RunFile(self, run, epoch, dropped, whole))
        found = self.pieces.get(run, whole, None).result()
        if found is None or len(found[0]) < rest:
            raise StorageError(f"the frames of {run} end before byte {size}")
        stored, version = found
        self.pieces.cut(run, whole + 1).result()
        # Even if it is what it should be: from now on its last writer, who may not know that it has been
        # replaced, cannot make it longer.
        version = self.pieces.put(run, whole, stored[:rest], version, epoch).result()
        return self._opened(RunFile(self, run, epoch, dropped, whole, stored[:rest], version))

    def _epoch(self, given: int | None) -> int:
        return self.pieces.epoch() if given is None else given

    def open(self, run: str, size: int | None) -> RunReader:
        """The frames of a run; ``size`` is how many bytes there are for good, None of one that may change.

        Raises:
            StoreDamaged: there is nothing.
        """
        if size is not None:
            return RunReader(self, run, size, self.cache)
        if self.writing(run) is None and run not in self.lent:
            self._settle(run)
            size = self.stored(run)
        # What is cut off and comes again need not be the same: it is nobody else's.
        return RunReader(self, run, size, self.sure_cache())

    def sure_cache(self) -> Cache:
        """For one reader, of pieces as they are for certain."""
        return Cache(self.pieces, _OWN * self.pieces.size, sure=True)

    def stored(self, run: str) -> int:
        """Bytes of a run that are stored. Raises StorageError; StoreDamaged: there are none."""
        count = self.pieces.count(run).result()
        if not count:
            raise StoreDamaged(f"message {run}: there are no frames")
        last = self.pieces.get(run, count - 1, None).result()
        if last is None:
            raise StoreDamaged(f"message {run}: its frames are being removed")
        return (count - 1) * self.pieces.size + len(last[0])

    def writing(self, run: str) -> RunFile | None:
        """The file through which this process writes a run."""
        with self._lock:
            return self._writing.get(run)

    def in_use(self, run: str) -> bool:
        """Whether somebody in this process reads or writes it."""
        with self._lock:
            return run in self._writing or self._readers[run] > 0

    def reading(self, run: str, change: int) -> None:
        """A reader has come, or is gone."""
        with self._lock:
            self._readers[run] += change
            if not self._readers[run]:
                del self._readers[run]

    def _opened(self, file: RunFile) -> RunFile:
        with self._lock:
            self._writing[file.run] = file
        return file

    def closed(self, file: RunFile) -> None:
        """Nothing more is written; what is not stored yet will be if somebody goes on with it."""
        with self._lock:
            if self._writing.get(file.run) is file:
                del self._writing[file.run]
                if not file.settled:
                    self._left[file.run] = file

    def forget(self, run: str) -> None:
        """Nobody wants the rest of what was written."""
        with self._lock:
            self._left.pop(run, None)

    def _settle(self, run: str) -> None:
        """What the last writer has left is stored. Raises StorageError."""
        with self._lock:
            left = self._left.pop(run, None)
        if left is not None:
            left.settle()


class RunFile(FrameFile):
    """A run that is being written; one thread at a time, but for ``sync``, ``recent`` and ``size``.

    Args:
        dropped: told if it is given up.
        whole: pieces that are full.
        tail: what is stored of the last one, and its version.

    Attributes:
        epoch: of its writing; may become later between two calls.
    """

    def __init__(
        self,
        runs: Runs,
        run: str,
        epoch: int,
        dropped: Callable[[str], None],
        whole: int = 0,
        tail: bytes = b"",
        version: int = 0,
    ) -> None:
        self.run = run
        self.epoch = epoch
        self._runs = runs
        self._pieces = runs.pieces
        self._dropped = dropped
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        self._whole = whole
        self._tail = bytearray(tail)
        self._version = version
        self._stored = len(tail)
        self._under_way: deque[tuple[int, bytes, Future[int]]] = deque()
        self._failure: StorageError | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that were appended."""
        with self._lock:
            return self._whole * self._pieces.size + len(self._tail)

    def append(self, parts: Sequence[Part]) -> None:
        """Write ``parts`` at the end."""
        self._check()
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                room = self._pieces.size - len(self._tail)
                with self._lock:
                    self._tail += view[:room]
                view = view[room:]
                if len(self._tail) == self._pieces.size:
                    self._send()

    def _send(self) -> None:
        """The last piece is full: it goes out, and the next begins."""
        with self._storing:
            while len(self._under_way) >= _UNDER_WAY:
                self._wait_for_first()
            data = bytes(self._tail)
            sent = self._put(data)
            with self._lock:
                self._under_way.append((self._whole, data, sent))
                self._whole += 1
                self._tail = bytearray()
                self._version = self._stored = 0

    def _put(self, data: bytes) -> Future[int]:
        return self._pieces.put(self.run, self._whole, data, self._version, self.epoch)

    def sync(self) -> None:
        """All that was appended before this call is stored, the last piece as far as it goes."""
        self._check()
        self.settle()

    @property
    def settled(self) -> bool:
        """Whether all that was appended is stored, or never will be."""
        with self._lock:
            return self._failure is not None or (not self._under_way and len(self._tail) == self._stored)

    def settle(self) -> None:
        """As ``sync``, of a file that may be closed."""
        with self._storing:
            while self._under_way:
                self._wait_for_first()
            with self._lock:
                data = bytes(self._tail)
            if len(data) > self._stored:
                self._version = self._result(self._put(data))
                self._stored = len(data)

    def rest(self) -> None:
        """Nothing is appended for a while: another process may be the next to do that."""
        self.sync()

    def _wait_for_first(self) -> None:
        self._result(self._under_way[0][2])
        with self._lock:
            self._under_way.popleft()

    def _result(self, sent: Future[int]) -> int:
        try:
            return sent.result()
        except StorageError as problem:
            self._failure = problem
            raise

    def recent(self, number: int) -> bytes | None:
        """A piece that may not be stored yet, as far as it was appended; None if it must be stored."""
        with self._lock:
            if number == self._whole:
                return bytes(self._tail)
            for there, data, _ in self._under_way:
                if there == number:
                    return data
        return None

    def close(self) -> None:
        """Nothing more will be written."""
        if not self._closed:
            self._closed = True
            self._runs.closed(self)

    def discard(self) -> None:
        """Close it and remove the frames, in the background."""
        self.close()
        self._runs.forget(self.run)
        self._dropped(self.run)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StorageError(f"the frames of {self.run} are closed")


class RunReader:
    """Reads a run at any offset; blocks, one thread at a time.

    Args:
        size: bytes of the run; None of one that is being written.
        cache: of pieces.
    """

    def __init__(self, runs: Runs, run: str, size: int | None, cache: Cache) -> None:
        self._cache = cache
        self._runs = runs
        self._run = run
        self._size = size
        self._pieces = runs.pieces
        self._closed = False
        runs.reading(run, 1)

    @property
    def size(self) -> int:
        """Bytes there are now."""
        if self._size is not None:
            return self._size
        file = self._runs.writing(self._run)
        return self._runs.stored(self._run) if file is None else file.size

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on, as far as there are bytes; how many.

        Raises:
            StorageError: they cannot be had now.
        """
        count = 0
        while count < len(buffer):
            number, start = divmod(offset + count, self._pieces.size)
            piece = self._piece(number, whole=start + len(buffer) - count >= self._pieces.size)
            part = memoryview(piece)[start : start + len(buffer) - count]
            if not part:
                break
            buffer[count : count + len(part)] = part
            count += len(part)
        return count

    def doubt(self) -> bool:
        """A piece may have been an older one of the same size: read what is stored for certain, from now on.

        False if that is so already.
        """
        if self._size is None or self._cache.sure:
            return False
        self._runs.cache.forget(self._run)
        self._cache = self._runs.sure_cache()
        return True

    def close(self) -> None:
        """Nothing more is read. Idempotent."""
        if not self._closed:
            self._closed = True
            self._runs.reading(self._run, -1)

    def _piece(self, number: int, *, whole: bool) -> bytes:
        """A piece, as far as there is; ``whole`` says that its last byte is wanted, so it must be full."""
        if self._size is None:
            file = self._runs.writing(self._run)
            if file is not None and (recent := file.recent(number)) is not None:
                return recent
            # It may have grown: nothing of it is kept. What another broker has filled need not be asked of
            # the stream's leader; what is written here may have been cut, and filled anew.
            full = whole and file is None
            found = self._pieces.get(self._run, number, self._pieces.size if full else None).result()
            return b"" if found is None else found[0]
        if not self._expected(number):
            return b""
        asked = self._cache.ask(self._run, number, self._expected(number))
        for ahead in range(number + 1, number + 1 + _AHEAD):
            if self._expected(ahead):
                self._cache.ask(self._run, ahead, self._expected(ahead))
        found = asked.result()
        return b"" if found is None else found[0]

    def _expected(self, number: int) -> int:
        """Bytes that a piece of a run of known size has."""
        return max(0, min(self._pieces.size, (self._size or 0) - number * self._pieces.size))


class Cache:
    """Pieces that were asked for lately: many readers of one message have them fetched once.

    It holds as many bytes for all readers together, however many there are. Any thread may ask.

    Args:
        held: bytes.
        sure: ask for what is stored for certain, and not for a copy, which may lag behind.
    """

    def __init__(self, pieces: Pieces, held: int = _CACHED, *, sure: bool = False) -> None:
        self.sure = sure
        self._pieces = pieces
        self._held = held
        self._asked: OrderedDict[tuple[str, int, int], Future[tuple[bytes, int] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, run: str, number: int, size: int) -> Future[tuple[bytes, int] | None]:
        """A piece of a run that does not change any more."""
        name = (run, number, size)
        with self._lock:
            found = self._asked.get(name)
            if found is not None and not _in_vain(found, size):
                self._asked.move_to_end(name)
                return found
            asked = self._asked[name] = self._pieces.get(run, number, None if self.sure else size)
            self._asked.move_to_end(name)
            while len(self._asked) > max(2 + _AHEAD, self._held // self._pieces.size):
                self._asked.popitem(last=False)
            return asked

    def forget(self, run: str) -> None:
        """What was fetched of a run is fetched anew."""
        with self._lock:
            for name in [name for name in self._asked if name[0] == run]:
                del self._asked[name]


def _in_vain(asked: Future[tuple[bytes, int] | None], size: int) -> bool:
    """Whether it is to be asked for again."""
    if not asked.done():
        return False
    found = None if asked.cancelled() or asked.exception() is not None else asked.result()
    return found is None or len(found[0]) != size
