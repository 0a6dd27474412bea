"""ServerState: what a server optimiser keeps from round to round, on disk and not in memory.

    FOLDER/optimizer-<number>.state     what belongs to the model that round <number> begins with

Strategy. The state of the next model is written beside that of the open round's, before that model is
published: under another name until it is complete and on stable storage. So at whatever instant the process
is killed, the newest model has its state: the old one if the next was not sealed yet, the new one if it was.
What is older is deleted when the newer model is sealed. A file is::

    for each tensor, for each of its moments: its values, float32 or float64, little-endian
    JSON: version, number, optimizer, layout, and of each tensor name, dtype, count and CRC-32C of each moment
    CRC-32C of the JSON (4 bytes), its size (8 bytes), "TBSTATE1"

Values go through ``pread`` and ``pwrite`` and not through a map: mapped pages count as memory of the process,
and a full disk would be a signal and not an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from tensorbus.aggregator.layout import Layout
from tensorbus.aggregator.result_items import precision
from tensorbus.codecs.base import Accumulator
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import StorageError, StoreDamaged
from tensorbus.streaming.checksum import extend
from tensorbus.streaming.part_file import PART, FileReader, PartFile

VERSION = 1
PORTION = 64 << 20
"""Bytes written between two times that they are put on stable storage."""

MAX_JSON = 64 << 20
_MAGIC = b"TBSTATE1"
_FOOTER = struct.Struct("<IQ8s")
_NAME = re.compile(r"optimizer-(\d{1,18})\.state")


@dataclass(frozen=True, slots=True)
class Moments:
    """What a state consists of.

    Attributes:
        optimizer: whose it is.
        count: how many numbers it keeps for each number of the model.
        specs: of the tensors that are optimised, in the order of the layout.
    """

    optimizer: str
    count: int
    specs: tuple[ItemSpec, ...]

    @classmethod
    def of(cls, optimizer: str, count: int, layout: Layout) -> Moments:
        """For all float tensors of the layout that are sent."""
        tensors = [spec for spec in layout.specs if spec.kind == "tensor" and spec.view is None]
        return cls(optimizer, count, tuple(spec for spec in tensors if spec.dtype.kind == "float"))

    def places(self) -> tuple[dict[str, list[int]], int]:
        """At which byte each moment of each tensor begins, and where all of them end."""
        at, places = 0, dict[str, list[int]]()
        for spec in self.specs:
            nbytes = spec.count * precision(spec).itemsize
            places[spec.name] = [at + nbytes * moment for moment in range(self.count)]
            at += nbytes * self.count
        return places, at

    def fingerprint(self) -> str:
        """Of the tensors' names, dtypes and shapes."""
        rows = [[spec.name, spec.dtype.name, list(spec.shape)] for spec in self.specs]
        return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


class StateReader:
    """One state, read piece by piece in ascending order of each tensor. Its methods block.

    Raises:
        StoreDamaged: it is missing, of something else, or damaged; the same from ``read``.
        StorageError: it cannot be read.
    """

    def __init__(self, folder: Path, number: int, moments: Moments) -> None:
        self._path = folder / name_of(number)
        self._moments = moments
        self._number = number
        self._places, self._end = moments.places()
        self._running: dict[str, list[int]] = {spec.name: [0] * moments.count for spec in moments.specs}
        if not self._path.exists():
            raise self._damaged("it is not there")
        self._file = FileReader(self._path)
        try:
            self._checksums = self._header()
        except BaseException:
            self._file.close()
            raise

    def read(self, spec: ItemSpec, start: int, out: Sequence[Accumulator]) -> None:
        """The moments of elements from ``start`` on, each into its row of ``out``."""
        running = self._running[spec.name]
        for moment, (row, place) in enumerate(zip(out, self._places[spec.name], strict=True)):
            data = row.view(np.uint8).data
            self._file.read_into(data, place + start * row.itemsize)
            running[moment] = extend(running[moment], data)
        if out and start + out[0].size == spec.count and running != self._checksums[spec.name]:
            raise self._damaged(f"the values of {spec.name!r} do not match their checksum")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _header(self) -> Mapping[str, list[int]]:
        foot = bytearray(_FOOTER.size)
        if self._file.size < self._end + _FOOTER.size:
            raise self._damaged("it is too short")
        self._file.read_into(memoryview(foot), self._file.size - _FOOTER.size)
        crc, size, magic = _FOOTER.unpack(foot)
        if magic != _MAGIC or size > MAX_JSON or self._end + size + _FOOTER.size != self._file.size:
            raise self._damaged("it does not end as such a file does, or is of another model")
        text = bytearray(size)
        self._file.read_into(memoryview(text), self._end)
        if extend(0, text) != crc:
            raise self._damaged("its description does not match its checksum")
        found = cast("dict[str, object]", json.loads(text))
        for key, wanted in self._description().items():
            if found.get(key) != wanted:
                raise self._damaged(f"its {key} is {found.get(key)!r:.80}, not {wanted!r:.80}")
        return cast("dict[str, list[int]]", found["checksums"])

    def _description(self) -> dict[str, object]:
        return _description(self._number, self._moments)

    def _damaged(self, what: str) -> StoreDamaged:
        moments = self._moments
        return StoreDamaged(
            f"the state of {moments.optimizer} for round {self._number}, {str(self._path)!r}, cannot be "
            f"used: {what}. Put the file back, or give {moments.optimizer}:start={self._number} to go on "
            "from this round with nothing remembered"
        )


class StateWriter:
    """The state of the next model, written piece by piece in ascending order of each tensor. Blocks.

    Raises:
        StorageFull, StorageError: it cannot be written; also from every method.
    """

    def __init__(self, folder: Path, number: int, moments: Moments) -> None:
        self._moments = moments
        self._number = number
        self._places, self._end = moments.places()
        self._running: dict[str, list[int]] = {spec.name: [0] * moments.count for spec in moments.specs}
        self._unsynced = 0
        self._file = PartFile(folder / name_of(number), self._end)

    def write(self, spec: ItemSpec, start: int, values: Sequence[Accumulator]) -> None:
        """The moments of elements from ``start`` on."""
        running = self._running[spec.name]
        for moment, (row, place) in enumerate(zip(values, self._places[spec.name], strict=True)):
            data = row.view(np.uint8).data
            running[moment] = extend(running[moment], data)
            self._file.write(data, place + start * row.itemsize)
            self._unsynced += row.nbytes
        if self._unsynced >= PORTION:
            self._unsynced = 0
            self._file.sync()

    def finish(self) -> None:
        """Everything was written: put it on stable storage, under its name."""
        description = {**_description(self._number, self._moments), "checksums": self._running}
        text = json.dumps(description, separators=(",", ":")).encode()
        foot = _FOOTER.pack(extend(0, text), len(text), _MAGIC)
        self._file.write(memoryview(text + foot), self._end)
        self._file.finish()

    def abort(self) -> None:
        """Give up; does nothing after ``finish``."""
        self._file.abort()


def name_of(number: int) -> str:
    """The file of the state that belongs to the model of round ``number``."""
    return f"optimizer-{number}.state"


def sweep(folder: Path, number: int) -> None:
    """Delete what the state of round ``number`` replaces, if that is there, and what was never completed.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        there = (folder / name_of(number)).exists()
        for path in folder.iterdir():
            found = _NAME.fullmatch(path.name)
            torn = path.suffix == PART and path.name.startswith("optimizer-")
            if torn or (there and found is not None and int(found[1]) < number):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot clean up the state folder {str(folder)!r}: {error}") from error


def _description(number: int, moments: Moments) -> dict[str, object]:
    return {
        "version": VERSION,
        "number": number,
        "optimizer": moments.optimizer,
        "moments": moments.count,
        "layout": moments.fingerprint(),
    }
