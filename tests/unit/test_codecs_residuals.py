"""Promises of residuals: the last acknowledged generation, exactly, whatever happens in between."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.codecs.residuals import MemoryResiduals, ResidualPass, Residuals
from tensorbus.errors import (
    StorageError,
    StoreDamaged,
    StoreInUse,
    StoreVersion,
    TensorbusError,
)
from tensorbus.streaming.residual_files import FileResiduals

Floats = npt.NDArray[np.float32]
Maker = Callable[[], Residuals]


@pytest.fixture(params=["memory", "file"])
def residuals(request: pytest.FixtureRequest, tmp_path: Path) -> Residuals:
    """Either kind."""
    return MemoryResiduals() if request.param == "memory" else FileResiduals(tmp_path / "r")


def spec(name: str = "w", *shape: int, dtype: str = "float32") -> ItemSpec:
    """A tensor."""
    return ItemSpec(name, DTYPES[dtype], shape or (1000,))


def of(count: int, number: float) -> Floats:
    """Values that tell where they belong."""
    return np.arange(count, dtype=np.float32) + np.float32(number)


def seen(over: ResidualPass, item: ItemSpec) -> Floats:
    """The last residual of a tensor."""
    values = np.zeros(item.count, np.float32)
    over.add_to(item, 0, values)
    return values


def send(residuals: Residuals, key: str, *kept: tuple[ItemSpec, float], acknowledged: bool = True) -> None:
    """One message: note residuals, seal, and commit if it was acknowledged."""
    over = residuals.begin(key)
    for item, number in kept:
        over.keep(item, 0, of(item.count, number))
    over.seal()
    if acknowledged:
        residuals.commit()


def test_there_are_none_at_first(residuals: Residuals) -> None:
    """The first message is sent as it is."""
    assert not seen(residuals.begin("a"), spec()).any()
    assert residuals.unresolved() is None


def test_what_was_acknowledged_is_added_the_next_time(residuals: Residuals) -> None:
    """From any element on, to what is there."""
    send(residuals, "a", (spec(), 5))
    values = np.full(100, 1000, np.float32)
    residuals.begin("b").add_to(spec(), 300, values)
    assert (values == of(1000, 1005)[300:400]).all()


def test_a_message_reads_the_last_generation_while_it_writes_the_next(residuals: Residuals) -> None:
    """So that a message that is sent again has the same bytes, however often, sealed or not."""
    send(residuals, "a", (spec(), 1))
    over = residuals.begin("b")
    for _ in range(2):
        assert (seen(over, spec()) == of(1000, 1)).all()
        over.keep(spec(), 0, of(1000, 2))
    over.seal()
    assert (seen(over, spec()) == of(1000, 1)).all()
    over.keep(spec(), 0, of(1000, 2))
    over.seal()
    residuals.commit()
    assert (seen(residuals.begin("c"), spec()) == of(1000, 2)).all()


def test_slices_are_noted_in_any_order_by_any_thread(residuals: Residuals) -> None:
    """As threads that encode ahead do it, for several tensors at once."""
    items = [spec(f"w{number}", 64 * 1000) for number in range(5)]
    over = residuals.begin("a")
    jobs = [(item, slice_) for item in items for slice_ in range(64)]
    random.Random(0).shuffle(jobs)

    def note(job: tuple[ItemSpec, int]) -> None:
        item, at = job
        values = of(item.count, float(item.name[1:]))[at * 1000 : (at + 1) * 1000]
        over.keep(item, at * 1000, values)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, jobs))
    over.seal()
    residuals.commit()
    again = residuals.begin("b")
    for item in items:
        assert (seen(again, item) == of(item.count, float(item.name[1:]))).all()


@pytest.mark.parametrize(
    "changed", [spec("w", 1001), spec("w", 10, 100), spec("w", 1000, dtype="float16"), spec("v", 1000)]
)
def test_another_shape_or_dtype_begins_anew(residuals: Residuals, changed: ItemSpec) -> None:
    """The residual of a tensor that is no longer the same is dropped, that of others stays."""
    send(residuals, "a", (spec(), 5), (spec("other", 7), 6))
    over = residuals.begin("b")
    assert not seen(over, changed).any()
    assert (seen(over, spec("other", 7)) == of(7, 6)).all()


def test_what_vanishes_is_dropped(residuals: Residuals) -> None:
    """A tensor that one message did not have has no residual after it."""
    send(residuals, "a", (spec("w"), 5), (spec("v"), 6))
    send(residuals, "b", (spec("v"), 7))
    assert not seen(residuals.begin("c"), spec("w")).any()


def test_a_message_that_failed_changes_nothing(residuals: Residuals) -> None:
    """Half encoded or sealed, without an acknowledgement the last generation stays."""
    send(residuals, "a", (spec(), 1))
    residuals.begin("b").keep(spec(), 0, of(1000, 2))
    assert (seen(residuals.begin("c"), spec()) == of(1000, 1)).all()
    send(residuals, "d", (spec(), 3), acknowledged=False)
    assert residuals.unresolved() == "d"
    assert (seen(residuals.begin("e"), spec()) == of(1000, 1)).all()
    assert residuals.unresolved() is None


def test_only_what_is_sealed_is_committed(residuals: Residuals) -> None:
    """Anything else is a mistake of the caller's."""
    for _ in range(2):
        with pytest.raises(TensorbusError, match="sealed"):
            residuals.commit()
        residuals.begin("a").keep(spec(), 0, of(1000, 1))
    send(residuals, "b", (spec(), 1))
    with pytest.raises(TensorbusError, match="sealed"):
        residuals.commit()


def test_0d_and_empty_tensors_have_residuals(residuals: Residuals) -> None:
    """One element, and none."""
    point, nothing = ItemSpec("p", DTYPES["float32"], ()), ItemSpec("n", DTYPES["float32"], (0, 3))
    send(residuals, "a", (point, 4), (nothing, 1))
    over = residuals.begin("b")
    assert seen(over, point).tolist() == [4] and not seen(over, nothing).size


def test_memory_is_used_again() -> None:
    """Two generations are all that is ever taken, however many messages there are."""
    residuals = MemoryResiduals()
    item = spec("w", 1 << 20)
    send(residuals, "a", (item, 0))
    send(residuals, "b", (item, 0))
    values = of(item.count, 1)
    tracemalloc.start()
    for number in range(5):
        over = residuals.begin(str(number))
        over.keep(item, 0, values)
        over.seal()
        residuals.commit()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


# --- in a folder -----------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    """Names of the files but the lock."""
    return {path.name for path in folder.iterdir()} - {"lock"}


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """Acknowledged residuals are there again; each generation that is over has left the disk."""
    first = FileResiduals(tmp_path)
    for number in range(3):
        send(first, str(number), (spec(), number), (spec("v", 2, 3, dtype="bfloat16"), 9))
    first.close()
    assert len(files(tmp_path)) == 2
    second = FileResiduals(tmp_path)
    over = second.begin("next")
    assert (seen(over, spec()) == of(1000, 2)).all()
    assert (seen(over, spec("v", 2, 3, dtype="bfloat16")) == of(6, 9)).all()


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_message_whose_answer_never_came_is_remembered(tmp_path: Path, acknowledged: bool) -> None:
    """After a restart its key is known; if it was acknowledged, its residuals count, else the older ones."""
    first = FileResiduals(tmp_path)
    send(first, "a", (spec(), 1))
    send(first, "b", (spec(), 2), acknowledged=False)
    first.close()
    second = FileResiduals(tmp_path)
    assert second.unresolved() == "b"
    if acknowledged:
        second.commit()
    assert (seen(second.begin("c"), spec()) == of(1000, 2 if acknowledged else 1)).all()
    second.close()
    assert FileResiduals(tmp_path).unresolved() is None


def test_a_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    """Two publishers would take each other's residuals; when the first is gone, the second may."""
    first = FileResiduals(tmp_path)
    with pytest.raises(StoreInUse, match="in use"):
        FileResiduals(tmp_path)
    first.close()
    first.close()
    FileResiduals(tmp_path)


def test_a_folder_is_free_when_nobody_refers_to_it(tmp_path: Path) -> None:
    """Even in the middle of a message, at once, whenever the garbage collector comes."""
    gc.disable()
    try:
        residuals = FileResiduals(tmp_path)
        residuals.begin("m").keep(spec(), 0, of(1000, 1))
        del residuals
        FileResiduals(tmp_path).close()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": "1", "last": null, "sealed": null}',
        '{"version": 1, "last": {"file": "../../etc/passwd", "key": "a", "tensors": []}, "sealed": null}',
        '{"version": 1, "last": {"file": "0123456789abcdef.residuals", "key": "a", "tensors": []}}',
        '{"version": 1, "last": 5, "sealed": null}',
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with it, the error says which folder, and what to do."""
    (tmp_path / "residuals.json").write_text(damage)
    with pytest.raises(StoreDamaged, match="delete the folder"):
        FileResiduals(tmp_path)


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    """Rather than to add nothing, or rubbish."""
    first = FileResiduals(tmp_path)
    send(first, "a", (spec(), 1))
    first.close()
    (data,) = tmp_path.glob("*.residuals")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(StoreDamaged, match="too short"):
        FileResiduals(tmp_path)


def test_a_newer_folder_is_refused(tmp_path: Path) -> None:
    """A release reads what it and older ones have written."""
    (tmp_path / "residuals.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(StoreVersion, match="newer release"):
        FileResiduals(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """By its name."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/r"):
        FileResiduals(tmp_path / "file" / "r")


def test_a_folder_costs_no_memory(tmp_path: Path) -> None:
    """Residuals of 128 MiB are written and read through buffers of a quarter of a megabyte."""
    residuals, item = FileResiduals(tmp_path), spec("w", 32 << 20)
    values = np.ones(1 << 20, np.float32)
    resident = _resident()
    tracemalloc.start()
    for key in "ab":
        over = residuals.begin(key)
        for offset in range(0, item.count, values.size):
            values[:] = 1
            over.add_to(item, offset, values)
            over.keep(item, offset, values)
        over.seal()
        residuals.commit()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values[0] == 2
    assert peak < 2 << 20
    assert _resident() - resident < 16 << 20


def _resident() -> int:
    """Bytes of memory that this process has, as the system counts them."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


FULL = """
import resource, sys
import numpy as np
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.errors import StorageFull
from tensorbus.streaming.residual_files import FileResiduals
residuals = FileResiduals(sys.argv[1])
small, large = ItemSpec("w", DTYPES["float32"], (1000,)), ItemSpec("v", DTYPES["float32"], (1 << 20,))
over = residuals.begin("a")
over.keep(small, 0, np.ones(1000, np.float32))
over.seal()
residuals.commit()
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
over = residuals.begin("b")
over.keep(small, 0, np.full(1000, 2, np.float32))
try:
    over.keep(large, 0, np.ones(1000, np.float32))
except StorageFull as error:
    print("full:", error)
over = residuals.begin("c")
values = np.zeros(1000, np.float32)
over.add_to(small, 0, values)
print(values[0])
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """It is an error that says so, when the first value of a tensor is noted; the last generation stays."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    full, value = done.stdout.splitlines()
    assert full.startswith("full: cannot write") and str(tmp_path) in full
    assert value == "1.0"


KILLED = """
import sys
import numpy as np
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec
from tensorbus.streaming.residual_files import FileResiduals
residuals = FileResiduals(sys.argv[1])
items = [ItemSpec(f"w{n}", DTYPES["float32"], (70_000,)) for n in range(3)]
number = int(sys.argv[2])
if residuals.unresolved() is not None:
    residuals.commit()
print("running", flush=True)
while True:
    number += 1
    over = residuals.begin(str(number))
    for item in items:
        over.keep(item, 0, np.full(item.count, number, np.float32))
    print("sealing", number, flush=True)
    over.seal()
    print("sealed", number, flush=True)
    residuals.commit()
    print("committed", number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_one_generation(tmp_path: Path) -> None:
    """In 12 kills: what was committed is there; what was sealed is there as unresolved, or committed."""
    chance = random.Random(4)
    items = [spec(f"w{number}", 70_000) for number in range(3)]
    number = 0
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(number)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            while not (line := process.stdout.readline()).startswith("committed"):
                assert line
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            lines = [line, *process.stdout.readlines()]
        last = {word: int(count) for word, count in (line.split() for line in lines if line.endswith("\n"))}
        residuals = FileResiduals(tmp_path)
        waiting = residuals.unresolved()
        # A line is printed before or after its step, so a step that was cut may have been done or not.
        if waiting is not None:
            assert int(waiting) in (last.get("sealed"), last.get("sealing"))
            number = int(waiting)
            assert last["committed"] == number - 1
            residuals.commit()
        over = residuals.begin("check")
        found = {float(value) for item in items for value in np.unique(seen(over, item))}
        assert len(found) == 1
        number = int(found.pop())
        assert number >= last["committed"]
        assert number <= last.get("sealing", number)
        residuals.close()
        assert len(list(tmp_path.glob("*.residuals"))) == 1
        assert len(list(tmp_path.glob("*.part"))) <= 1  # of the check above
    assert number >= 12


def test_a_committed_generation_frees_the_one_before(tmp_path: Path) -> None:
    """Between two messages there is one generation on disk; a deleted one that is open takes room, too."""
    residuals = FileResiduals(tmp_path / "r")
    for number in range(3):
        send(residuals, f"k{number}", (spec("w", 1237), number))
    held: list[os.stat_result] = []
    for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        with suppress(OSError):
            held.append(os.fstat(descriptor))
    here = (tmp_path / "r").stat().st_dev
    assert not [one for one in held if one.st_dev == here and not one.st_nlink and one.st_size == 4 * 1237]
    assert len(list((tmp_path / "r").glob("*.residuals"))) == 1
