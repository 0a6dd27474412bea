"""Residuals in a folder: they cost disk and no memory, and survive a restart of the site.

Strategy. A generation is one file of float32, the tensors one behind the other. ``residuals.json`` names the
last generation and the one that is sealed, if any. Each step replaces it as a whole (write, fsync, rename,
fsync of the folder), when the files that it names are on stable storage already, and before those that it no
longer names are deleted. So whenever the process is killed, what is there is the state before the step or
after it; files that nobody names are deleted at the next start.

Values go through ``pread`` and ``pwrite`` and not through a map: mapped pages count as memory of the process,
and a full disk would be a signal and not an error. What is written is put on stable storage in portions, so
that sealing has little left to wait for.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.residuals import Floats, ResidualPass, Residuals
from tensorbus.codecs.scratch import pieces, scratch
from tensorbus.errors import StorageError, StoreInUse, TensorbusError

from .part_file import PART, FileReader, PartFile
from .residual_state import SUFFIX, Generation, Place, State

PORTION = 64 << 20
"""Bytes written between two times that they are put on stable storage."""


class FileResiduals(Residuals):
    """The residuals of one stream of messages, kept in ``folder``, which is made where it is missing.

    It takes 4 bytes a value on disk, and as much again while a message is under way.

    Raises:
        StoreInUse: another process, or another object of this one, works with the folder.
        StoreDamaged, StoreVersion: the folder was not written like this, or by a newer release.
        StorageFull, StorageError: it cannot be read or written; also by every method.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._pass: _FilePass | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"cannot keep residuals in {str(self._folder)!r}: {error}") from error
        self.close = weakref.finalize(self, os.close, lock)
        """Let others work with the folder; may be called twice, and is when nobody refers to this object."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise StoreInUse(
                f"the residuals in {str(self._folder)!r} are in use by another process"
            ) from error
        self._state = State.read(self._folder)
        self._sweep()

    def begin(self, key: str) -> ResidualPass:
        if self._pass is not None:
            self._pass.abort()
        self._become(replace(self._state, sealed=None))
        self._pass = _FilePass(self, self._folder, key, self._state.last)
        return self._pass

    def commit(self) -> None:
        if self._state.sealed is None:
            raise TensorbusError("no residuals are sealed that could be committed")
        self._become(State(last=self._state.sealed))
        # It holds the last generation but one open, whose file would take disk for as long.
        self._pass = None

    def unresolved(self) -> str | None:
        return self._state.sealed.key if self._state.sealed else None

    def note_sealed(self, generation: Generation) -> None:
        """Called by the pass, when the file of its generation is complete and on stable storage."""
        self._become(replace(self._state, sealed=generation))

    def _become(self, state: State) -> None:
        if state == self._state:
            return
        state.write(self._folder)
        before, self._state = self._state, state
        for one in (before.last, before.sealed):
            if one is not None and one not in (state.last, state.sealed):
                (self._folder / one.file).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what steps that were cut short have left."""
        named = {one.file for one in (self._state.last, self._state.sealed) if one is not None}
        for path in self._folder.iterdir():
            if path.suffix == PART or (path.suffix == SUFFIX and path.name not in named):
                path.unlink(missing_ok=True)


class _FilePass(ResidualPass):
    """Reads the file of the last generation, and writes that of the next, which grows by each new tensor."""

    def __init__(self, residuals: FileResiduals, folder: Path, key: str, last: Generation | None) -> None:
        # Not the object itself, which refers to this one: whoever lets go of it frees its folder at once.
        self._residuals = weakref.ref(residuals)
        self._key = key
        self._last: Mapping[str, Place] = last.places if last else {}
        self._reader = FileReader(folder / last.file) if last else None
        if self._reader is not None:
            weakref.finalize(self, self._reader.close)
        self._name = secrets.token_hex(8) + SUFFIX
        self._file = PartFile(folder / self._name)
        self._places: dict[str, Place] = {}
        self._end = 0
        self._unsynced = 0
        self._sealed = False
        self._changing = threading.Lock()

    def add_to(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        place = self._last.get(spec.name)
        if place is None or not place.is_of(spec) or self._reader is None:
            return
        for start, stop in pieces(values.size):
            piece = scratch("residual", stop - start, np.float32)
            self._reader.read_into(piece.view(np.uint8).data, place.start + 4 * (offset + start))
            np.add(values[start:stop], piece, out=values[start:stop])

    def keep(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        if self._sealed:
            return
        place = self._place(spec)
        self._file.write(values.view(np.uint8).data, place.start + 4 * offset)
        with self._changing:
            self._unsynced += values.nbytes
            due = self._unsynced >= PORTION
            if due:
                self._unsynced = 0
        if due:
            self._file.sync()

    def seal(self) -> None:
        residuals = self._residuals()
        if residuals is None:
            raise TensorbusError(
                f"the residuals of message {self._key!r} were let go of before it was sealed"
            )
        if not self._sealed:
            self._file.finish()
            residuals.note_sealed(Generation(self._name, self._key, self._places))
            self._sealed = True

    def abort(self) -> None:
        """Another message begins: what was noted is of no use any more."""
        self._file.abort()

    def _place(self, spec: ItemSpec) -> Place:
        with self._changing:
            place = self._places.get(spec.name)
            if place is None:
                place = Place(spec.dtype.name, spec.shape, self._end)
                self._file.grow(place.end)
                self._places[spec.name] = place
                self._end = place.end
            return place
