"""What the folder of a `FileResiduals` holds, as its ``residuals.json`` says.

::

    {"version": 1, "last": GENERATION or null, "sealed": GENERATION or null}
    GENERATION = {"file": name, "key": of its message, "tensors": [[name, dtype, shape, first byte], …]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import StorageError, StoreDamaged, StoreVersion

from .part_file import PartFile

VERSION = 1
STATE = "residuals.json"
SUFFIX = ".residuals"

_FILE = re.compile(rf"[0-9a-f]{{16}}\{SUFFIX}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the residual of a tensor lies in the file of its generation: float32, from byte ``start`` on."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    def is_of(self, spec: ItemSpec) -> bool:
        """Whether it is the residual of such a tensor."""
        return (self.dtype, self.shape) == (spec.dtype.name, spec.shape)

    @property
    def end(self) -> int:
        """The byte behind its last one."""
        return self.start + 4 * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Generation:
    """The residuals of one message: a file, the message's key, and what lies where in the file."""

    file: str
    key: str
    places: Mapping[str, Place]

    def to_json(self) -> dict[str, object]:
        """As the state has it."""
        rows = [[name, one.dtype, list(one.shape), one.start] for name, one in self.places.items()]
        return {"file": self.file, "key": self.key, "tensors": rows}


@dataclass(frozen=True, slots=True)
class State:
    """The generation last acknowledged, and the one sealed since; both files are on stable storage."""

    last: Generation | None = None
    sealed: Generation | None = None

    def write(self, folder: Path) -> None:
        """Replace the state of ``folder``, at once and for good.

        Raises:
            StorageFull, StorageError: it cannot be written; what was there stays.
        """
        generations = {"last": self.last, "sealed": self.sealed}
        fields = {name: one.to_json() if one else None for name, one in generations.items()}
        data = json.dumps({"version": VERSION, **fields}, separators=(",", ":")).encode()
        file = PartFile(folder / STATE, len(data))
        try:
            file.write(memoryview(data), 0)
            file.finish()
        except BaseException:
            file.abort()
            raise

    @classmethod
    def read(cls, folder: Path) -> State:
        """The state of ``folder``; an empty one where there is none yet.

        Raises:
            StorageError: it cannot be read.
            StoreDamaged, StoreVersion: it was not written like this, or by a newer release.
        """
        try:
            data = (folder / STATE).read_bytes()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise StorageError(f"cannot read {str(folder / STATE)!r}: {error}") from error
        try:
            fields = cast("dict[str, object]", json.loads(data))
            if cast(int, fields["version"]) > VERSION:
                raise StoreVersion(f"{str(folder / STATE)!r} was written by a newer release of Tensorbus")
            return cls(_generation(folder, fields["last"]), _generation(folder, fields["sealed"]))
        except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            if isinstance(error, StoreVersion):
                raise
            raise StoreDamaged(
                f"the residuals in {str(folder)!r} are damaged ({error}); delete the folder to begin without"
            ) from error


def _generation(folder: Path, source: object) -> Generation | None:
    if source is None:
        return None
    fields = cast("dict[str, object]", source)
    rows = cast("list[tuple[str, str, list[int], int]]", fields["tensors"])
    places = {name: Place(dtype, tuple(map(int, shape)), int(start)) for name, dtype, shape, start in rows}
    generation = Generation(str(fields["file"]), str(fields["key"]), places)
    if not _FILE.fullmatch(generation.file):
        raise ValueError(f"{generation.file!r} is no file of residuals")
    size = (folder / generation.file).stat().st_size
    if any(not 0 <= place.start <= place.end <= size for place in places.values()):
        raise ValueError(f"{generation.file!r} is too short")
    return generation
