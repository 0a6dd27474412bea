"""Promises of the kernels' loader: what is asked for is used, or the error says why it cannot be."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import numpy as np
import pytest

from tensorbus.codecs.kernels import forced, native, pointer, status
from tensorbus.codecs.kernels.loader import INSTRUCTION_SETS, LIBRARY
from tensorbus.codecs.quantizers import lloyd
from tensorbus.errors import KernelsUnavailable


def test_pointer_is_the_address_of_the_first_byte() -> None:
    """Of read-only and writable buffers of every kind, slices and odd addresses too; empty ones have any."""
    text = b"a read-only buffer"
    assert ctypes.string_at(pointer(memoryview(text)), len(text)) == text
    assert ctypes.string_at(pointer(memoryview(text)[3:]), 4) == b"ead-"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.setflags(write=False)
    assert pointer(array) == pointer(array.data) == array.ctypes.data
    assert pointer(np.zeros((), np.float64)) > 0
    assert isinstance(pointer(memoryview(b"")), int)
    assert isinstance(pointer(np.empty((0, 3), np.uint8)), int)


def test_pointer_refuses_what_is_scattered() -> None:
    """A kernel would read past it."""
    with pytest.raises(ValueError, match="contiguous"):
        pointer(np.zeros((4, 4))[:, 1])
    with pytest.raises(BufferError, match="contiguous"):
        pointer(memoryview(b"12345678")[::2])


def test_numpy_can_be_forced_and_ends() -> None:
    """In every thread while it lasts; afterwards all is as before."""
    before = status()
    seen: list[object] = []
    for word in ("numpy", "torch"):
        with forced(word) as inside:
            thread = threading.Thread(target=lambda: seen.append(native()))
            thread.start()
            thread.join()
            assert inside == status()
        assert (inside.kind, inside.isa, inside.path) == ("numpy", None, None)
        assert word in inside.reason
    assert seen == [None, None]
    assert status() == before


def test_an_instruction_set_is_used_or_refused() -> None:
    """Each one either is what the status says, with the same library, or raises an error that names it."""
    if native() is None:
        pytest.skip(f"no compiled kernels here: {status().reason}")
    used: list[str] = []
    refusals: list[str] = []
    for isa in INSTRUCTION_SETS:
        try:
            with forced("c", isa) as inside, forced("c", "baseline") as lowest:
                assert native() is not None
                assert inside.kind == lowest.kind == "c"
                assert inside.isa == isa or (isa, inside.isa) == ("baseline", "neon")
            used.append(isa)
        except KernelsUnavailable as error:
            refusals.append(str(error))
    assert "baseline" in used
    refused = [isa for isa in INSTRUCTION_SETS if isa not in used]
    assert all(f"TENSORBUS_ISA={isa}:" in words for isa, words in zip(refused, refusals, strict=True))
    with forced("c") as best:
        assert best.isa == used[-1]


@pytest.mark.parametrize(
    ("kernels", "isa", "words"),
    [
        ("cuda", None, "TENSORBUS_KERNELS='cuda' is none of auto, c, numpy, torch"),
        ("auto", "sse2", "TENSORBUS_ISA='sse2' is none of baseline, neon, avx2, avx512"),
    ],
)
def test_nonsense_is_refused(kernels: str, isa: str | None, words: str) -> None:
    """The error names the variable, its value and what it may be; the choice before stays."""
    before = status()
    with pytest.raises(KernelsUnavailable, match=words), forced(kernels, isa):
        pass
    assert status() == before


def test_loading_imports_no_torch() -> None:
    """The loader needs numpy, and nothing of torch, bitsandbytes or the installation's tools."""
    code = (
        "import sys; from tensorbus.codecs.kernels import status; status(); "
        "print([m for m in ('torch', 'bitsandbytes', 'setuptools') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_threads_that_begin_together_find_every_prototype() -> None:
    """Two threads may use a codec for the first time at once; without a prototype, a kernel would get its
    addresses cut to 32 bits."""
    library = native()
    if library is None:
        pytest.skip("without the library there are no prototypes")
    started, declared, replaced, seen = (threading.Event() for _ in range(4))

    class Slow(ctypes.CDLL):
        """One thread puts its function in place when the other has declared its own, if that is possible."""

        def __setattr__(self, name: str, value: object) -> None:
            waits = name == "tb_lloyd_encode" and threading.current_thread() is slow
            if waits:
                started.set()
                declared.wait(0.2)
            super().__setattr__(name, value)
            if waits:
                replaced.set()
                seen.wait(0.2)

    fresh = Slow(str(LIBRARY))
    lloyd._prototyped.cache_clear()  # pyright: ignore[reportPrivateUsage]
    slow = threading.Thread(target=lambda: lloyd._prototyped(fresh))  # pyright: ignore[reportPrivateUsage]
    try:
        slow.start()
        assert started.wait(60)
        own = lloyd._prototyped(fresh)  # pyright: ignore[reportPrivateUsage]
        declared.set()
        assert replaced.wait(60)
        assert own.tb_lloyd_encode.argtypes
        seen.set()
    finally:
        slow.join()
        lloyd._prototyped.cache_clear()  # pyright: ignore[reportPrivateUsage]
