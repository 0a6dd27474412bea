"""Residuals: what quantising left out of each tensor the last time, to be added the next time.

A message may be encoded more than once before it is acknowledged, and each time has to give the same bytes:
so the old residuals stay until the message is acknowledged, and the new ones are a generation of their own.

    begin(key) → the message is encoded → seal → it is sent → acknowledged: commit
                                                            → never known: unresolved, until the next begin

Residuals are float32 and belong to a tensor by its name; those of a tensor whose shape or dtype has changed,
and of one that a message did not have, are dropped.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorbus.errors import TensorbusError

from .dtypes import DType
from .item import ItemSpec

Floats = npt.NDArray[np.float32]


class ResidualPass(ABC):
    """One message's use of the residuals: the last generation is read, the next one written.

    Called by several threads at once, for different slices.
    """

    @abstractmethod
    def add_to(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        """Add the last residual of elements ``offset`` to ``offset + values.size`` to ``values`` in place."""

    @abstractmethod
    def keep(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        """Note ``values`` as the next residual of these elements; noting them again replaces them.

        Raises:
            StorageFull, StorageError: they cannot be kept; the last generation is as it was.
        """

    @abstractmethod
    def seal(self) -> None:
        """Every slice of the message has been encoded: the next generation is complete, and on stable storage
        if it is kept there. What is noted after it is what was noted before: a message that is sent again.

        Raises:
            StorageFull, StorageError: as ``keep``.
        """


class Residuals(ABC):
    """The residuals of a stream of messages, such as one site's updates to one job; one message at a time."""

    @abstractmethod
    def begin(self, key: str) -> ResidualPass:
        """The pass for the message ``key``; an earlier pass that was never committed is given up."""

    @abstractmethod
    def commit(self) -> None:
        """The message was acknowledged: the generation that was sealed is the last one from now on.

        Raises:
            TensorbusError: none is sealed.
        """

    @abstractmethod
    def unresolved(self) -> str | None:
        """Key of a message whose generation was sealed but neither committed nor given up, because its answer
        never came, or the process died. Who finds out whether it was acknowledged commits, or begins anew.
        """


@dataclass(frozen=True, slots=True)
class _Kept:
    dtype: DType
    shape: tuple[int, ...]
    values: Floats


class MemoryResiduals(Residuals):
    """Residuals in memory: two generations of 4 bytes a value; a restart begins without."""

    def __init__(self) -> None:
        self._last: dict[str, _Kept] = {}
        self._spare: dict[str, _Kept] = {}
        self._pass: _MemoryPass | None = None

    def begin(self, key: str) -> ResidualPass:
        self._pass = _MemoryPass(key, self._last, self._spare)
        self._spare = {}
        return self._pass

    def commit(self) -> None:
        if self._pass is None or not self._pass.sealed:
            raise TensorbusError("no residuals are sealed that could be committed")
        self._last, self._spare = self._pass.following, self._last
        self._pass = None

    def unresolved(self) -> str | None:
        return self._pass.key if self._pass is not None and self._pass.sealed else None


class _MemoryPass(ResidualPass):
    """``spare`` is a generation that is no longer needed, whose memory is used again."""

    def __init__(self, key: str, last: dict[str, _Kept], spare: dict[str, _Kept]) -> None:
        self.key = key
        self.following: dict[str, _Kept] = {}
        self.sealed = False
        self._last = last
        self._spare = spare
        self._growing = threading.Lock()

    def add_to(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        kept = self._last.get(spec.name)
        if kept is not None and (kept.dtype, kept.shape) == (spec.dtype, spec.shape):
            np.add(values, kept.values[offset : offset + values.size], out=values)

    def keep(self, spec: ItemSpec, offset: int, values: Floats) -> None:
        np.copyto(self._room(spec)[offset : offset + values.size], values)

    def seal(self) -> None:
        self.sealed = True
        self._spare = {}

    def _room(self, spec: ItemSpec) -> Floats:
        with self._growing:
            kept = self.following.get(spec.name)
            if kept is None:
                spare = self._spare.pop(spec.name, None)
                fits = spare is not None and spare.values.size == spec.count
                values = spare.values if spare is not None and fits else np.empty(spec.count, np.float32)
                kept = self.following[spec.name] = _Kept(spec.dtype, spec.shape, values)
            return kept.values
