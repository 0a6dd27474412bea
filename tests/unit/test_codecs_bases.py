"""Promises of bases: one id for the same values however they are kept, and their bytes in bounded memory."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.bases import Base, ItemBase, check_base_id
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.errors import InvalidSpecification, MissingBase, StorageError, UnsupportedContainer
from tensorbus.streaming.base_files import open_base

save_file = cast("Callable[[Arrays, Path], None]", import_module("safetensors.numpy").save_file)
Arrays = Mapping[str, npt.NDArray[Any]]


def arrays() -> dict[str, npt.NDArray[Any]]:
    """A little of everything."""
    rng = np.random.default_rng(5)
    return {
        "zz": rng.standard_normal((300, 41)).astype(np.float32),
        "half": rng.standard_normal(1001).astype(np.float16),
        "double": rng.standard_normal((3, 5, 7)),
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
        "ü": np.arange(5, dtype=np.uint8),
    }


def written_out(tensors: Arrays) -> str:
    """The id as its description says, in the plainest way."""
    lines = [
        json.dumps(
            [name, str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()],
            separators=(",", ":"),
        )
        for name, array in sorted(tensors.items())
    ]
    return "sha256:" + hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def read(base: Base, spec: ItemSpec, offset: int, count: int) -> bytes:
    """What the base has there."""
    out = bytearray(count * spec.dtype.itemsize)
    base.read_into(spec, offset, count, memoryview(out))
    return bytes(out)


def test_the_id_is_as_described() -> None:
    """Anybody can compute it, in any language, from names, dtypes, shapes and bytes."""
    assert open_base(arrays()).id == written_out(arrays())


def test_the_id_does_not_tell_how_values_are_kept(tmp_path: Path) -> None:
    """A file, a numpy dict in any order and layout, and a torch state_dict of the same model have one id."""
    torch = pytest.importorskip("torch")
    expected = written_out(arrays())
    save_file(arrays(), tmp_path / "model.safetensors")
    assert open_base(tmp_path / "model.safetensors").id == expected
    backwards = {
        name: np.asfortranarray(array) if array.ndim == 2 else array
        for name, array in reversed(arrays().items())
    }
    assert open_base({**backwards, "epoch": 3, "note": b"x"}).id == expected
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays().items()}
    assert open_base(tensors).id == expected


def test_shared_storage_does_not_change_the_id() -> None:
    """A tied head, a slice of another tensor and their copies are the same values."""
    shared = np.arange(6000, dtype=np.float32).reshape(60, 100)
    tied = {"embed": shared, "head": shared, "rows": shared[10:20], "columns": shared[:, 3]}
    assert open_base(tied).id == written_out(tied)
    assert open_base(tied).id == open_base({name: array.copy() for name, array in tied.items()}).id


@pytest.mark.parametrize("change", ["a value", "a name", "a shape", "a dtype", "one more", "one less"])
def test_every_difference_changes_the_id(change: str) -> None:
    """Two ends with one id have the same names, dtypes, shapes and bits."""
    changed = arrays()
    if change == "a value":
        changed["double"][1, 1, 1] = np.nextafter(changed["double"][1, 1, 1], 9)
    elif change == "a name":
        changed["zzz"] = changed.pop("zz")
    elif change == "a shape":
        changed["zz"] = changed["zz"].reshape(41, 300)
    elif change == "a dtype":
        changed["half"] = changed["half"].view(np.int16)
    elif change == "one more":
        changed["more"] = np.zeros(0, np.float32)
    else:
        del changed["empty"]
    assert open_base(changed).id != open_base(arrays()).id


def test_a_base_holds_what_it_holds(tmp_path: Path) -> None:
    """By name, dtype and shape; scalars and byte strings of a container are no tensors of it."""
    save_file(arrays(), tmp_path / "model.safetensors")
    for base in (open_base(tmp_path / "model.safetensors"), open_base({**arrays(), "blob": b"123"})):
        for name, array in arrays().items():
            spec = ItemSpec(name, DTYPES[str(array.dtype)], array.shape)
            assert base.holds(spec)
            assert read(base, spec, 0, spec.count) == array.tobytes()
            assert not base.holds(ItemSpec(name, spec.dtype, (*spec.shape, 1)))
        zz = ItemSpec("zz", DTYPES["float32"], (300, 41))
        assert read(base, zz, 77, 1000) == arrays()["zz"].reshape(-1)[77:1077].tobytes()
        for other in (
            ItemSpec("blob", DTYPES["uint8"], (3,)),
            ItemSpec("zz", DTYPES["int32"], (300, 41)),
        ):
            assert not base.holds(other)
            with pytest.raises(MissingBase, match=f"{other.name!r}"):
                read(base, other, 0, 1)


def test_many_threads_read_a_base(tmp_path: Path) -> None:
    """A file and a strided array give each thread its own values."""
    tall = np.random.default_rng(0).standard_normal((500, 400)).astype(np.float32)
    save_file({"w": tall}, tmp_path / "m.safetensors")
    spec = ItemSpec("w", DTYPES["float32"], (500, 400))
    for base in (open_base(tmp_path / "m.safetensors"), open_base({"w": np.asfortranarray(tall)})):
        with ThreadPoolExecutor(8) as pool:
            rows = [pool.submit(read, base, spec, row * 400, 400) for row in range(500)]
            assert [row.result() for row in rows] == [row.tobytes() for row in tall]


class OneAtATime(Item):
    """An item that only one thread may read at a time."""

    def __init__(self) -> None:
        self.spec = ItemSpec("w", DTYPES["uint8"], (100,))
        self._reading = threading.Lock()

    def read(self, offset: int, count: int) -> memoryview:
        assert self._reading.acquire(blocking=False), "two threads read at once"
        try:
            return memoryview(bytes(range(100)))[offset : offset + count]
        finally:
            self._reading.release()


def test_items_for_one_thread_are_read_by_one_thread() -> None:
    """A serializer of somebody else need not know of threads."""
    base = ItemBase([OneAtATime()])
    spec = ItemSpec("w", DTYPES["uint8"], (100,))
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(read, base, spec, 3, 50) for _ in range(200)]
        assert {one.result() for one in reads} == {bytes(range(3, 53))}


def test_a_file_takes_no_memory(tmp_path: Path) -> None:
    """Neither to compute its id nor to read it: pieces of a megabyte, whatever its size."""
    path = tmp_path / "big.safetensors"
    save_file({"w": np.zeros((64 << 20) // 4, np.float32), "v": np.ones((32 << 20) // 4, np.float32)}, path)
    tracemalloc.start()
    base = open_base(path)
    read(base, ItemSpec("w", DTYPES["float32"], ((64 << 20) // 4,)), 5, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_known_id_is_taken_at_its_word(tmp_path: Path) -> None:
    """Who decoded a message knows its digest; no value is read."""
    known = "message:" + "ab" * 32
    assert open_base(arrays(), known).id == known
    save_file(arrays(), tmp_path / "model.safetensors")
    base = open_base(tmp_path / "model.safetensors", known)
    assert base.id == known
    assert open_base(base) is base


@pytest.mark.parametrize("wrong", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 64, 7, b"x"])
def test_an_id_is_spelled_as_one(wrong: object) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidSpecification, match="no id of a base"):
        check_base_id(wrong)


def test_what_is_no_container_is_no_base(tmp_path: Path) -> None:
    """The error is that of publishing it."""
    with pytest.raises(UnsupportedContainer):
        open_base(3.5)
    with pytest.raises(StorageError):
        open_base(tmp_path / "nowhere.safetensors")
