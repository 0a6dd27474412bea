"""The compiled kernels, where there are any: a library beside this file, without any Python ABI.

Strategy. ``setup.py`` compiles the C files of this folder into one library. It is opened when a codec first
asks for it, and calls into it release the GIL. Without it (no compiler, another processor, a build of older
sources) the codecs use their numpy paths, which give the same bits. Two environment variables, read at that
first use, change the choice:

``TENSORBUS_KERNELS``
    ``auto`` (the default) takes the library if it can be used; ``c`` insists on it; ``numpy``, or ``torch``,
    another word for the same, leaves it alone.
``TENSORBUS_ISA``
    ``avx512``, ``avx2``, ``neon`` or ``baseline``: use no instructions beyond these.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorbus.errors import KernelsUnavailable

ABI = 3
"""What ``tb_abi()`` in convert.c says; both are raised when a signature changes."""

LIBRARY = Path(__file__).resolve().with_name("_kernels.dylib" if sys.platform == "darwin" else "_kernels.so")

NOT_BUILT = LIBRARY.with_suffix(".txt")
"""Where ``setup.py`` leaves its reason if it could not build the library."""

CHOICES = ("auto", "c", "numpy", "torch")
INSTRUCTION_SETS = ("baseline", "neon", "avx2", "avx512")

# The levels of kernels.h by name. Every aarch64 has NEON, so there it is what "baseline" means.
_LEVELS: dict[str, int] = (
    {"baseline": 0, "neon": 0}
    if platform.machine() in ("aarch64", "arm64")
    else {"baseline": 0, "avx2": 1, "avx512": 2}
)
_NAMES = {level: name for name, level in _LEVELS.items()}
_HIGHEST = max(_NAMES)


@dataclass(frozen=True)
class KernelStatus:
    """Which kernels are in use, and why.

    Attributes:
        kind: ``c`` for the library, ``numpy`` for the fallback.
        isa: the instruction set that the library uses, one of ``INSTRUCTION_SETS``; None without it.
        reason: why it is so, for people.
        path: the library in use; None without it.
    """

    kind: Literal["c", "numpy"]
    isa: str | None
    reason: str
    path: str | None


@dataclass(frozen=True)
class _Choice:
    library: ctypes.CDLL | None
    status: KernelStatus
    level: int = _HIGHEST


class _Unusable(Exception):
    """There is no library that can be used; says why."""


declaring = threading.Lock()
"""Held by who declares prototypes as attributes of the library: two threads that look up the same function at
once would each get their own, and may then call the other's, which would cut addresses to 32 bits."""

_lock = threading.RLock()
_library: ctypes.CDLL | None = None
_choice: _Choice | None = None


def native() -> ctypes.CDLL | None:
    """The library of compiled kernels, or None if the numpy paths are to be used.

    Cheap: ask anew for each tensor or slice, so that ``forced`` reaches every codec.

    Raises:
        KernelsUnavailable: an environment variable asks for what there is not, or makes no sense.
    """
    return (_choice or _first_choice()).library


def status() -> KernelStatus:
    """Which kernels are in use, and why. Raises as ``native`` does."""
    return (_choice or _first_choice()).status


def pointer(buffer: memoryview | npt.NDArray[Any]) -> int:
    """The address of the first byte of a contiguous buffer, writable or not; any address if it is empty.

    The caller keeps the buffer alive while the address is in use.

    Raises:
        ValueError: the array is not contiguous; BufferError if it is a memoryview.
    """
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


@contextmanager
def forced(kernels: str, isa: str | None = None) -> Generator[KernelStatus]:
    """Within it, all threads of this process use these kernels; for tests and measurements.

    Args:
        kernels: as ``TENSORBUS_KERNELS``.
        isa: as ``TENSORBUS_ISA``; the best one if None.

    Raises:
        KernelsUnavailable: there are no such kernels here.
    """
    global _choice
    with _lock:
        before = _choice
        try:
            _choice = _choose(kernels, isa)
        except KernelsUnavailable:
            _return_to(before)
            raise
    try:
        yield _choice.status
    finally:
        with _lock:
            _return_to(before)


def _return_to(choice: _Choice | None) -> None:
    global _choice
    _choice = choice
    if choice is not None and choice.library is not None:
        choice.library.tb_set_isa(choice.level)


def usable() -> list[tuple[str, str | None]]:
    """What `forced` can be given here: numpy, and the library with each instruction set of this processor."""
    found: list[tuple[str, str | None]] = [("numpy", None)]
    for isa in INSTRUCTION_SETS:
        try:
            with forced("c", isa):
                found.append(("c", isa))
        except KernelsUnavailable:
            continue
    return found


def _first_choice() -> _Choice:
    global _choice
    with _lock:
        if _choice is None:
            kernels = os.environ.get("TENSORBUS_KERNELS") or "auto"
            _choice = _choose(kernels, os.environ.get("TENSORBUS_ISA") or None)
        return _choice


def _choose(kernels: str, isa: str | None) -> _Choice:
    if kernels not in CHOICES:
        raise KernelsUnavailable(f"TENSORBUS_KERNELS={kernels[:64]!r} is none of {', '.join(CHOICES)}")
    if isa is not None and isa not in INSTRUCTION_SETS:
        raise KernelsUnavailable(f"TENSORBUS_ISA={isa[:64]!r} is none of {', '.join(INSTRUCTION_SETS)}")
    if kernels in ("numpy", "torch"):
        return _Choice(None, KernelStatus("numpy", None, f"TENSORBUS_KERNELS={kernels} asks for it", None))
    try:
        library = _open()
    except _Unusable as unusable:
        if kernels == "c":
            raise KernelsUnavailable(f"TENSORBUS_KERNELS=c, but {unusable}") from unusable
        return _Choice(None, KernelStatus("numpy", None, str(unusable), None))
    wanted = _HIGHEST if isa is None else _LEVELS.get(isa)
    level: int = library.tb_set_isa(_HIGHEST if wanted is None else wanted)
    if isa is not None and level != wanted:
        raise KernelsUnavailable(f"TENSORBUS_ISA={isa}: this processor has only {_NAMES[level]}")
    reason = "the best of this processor" if isa is None else f"TENSORBUS_ISA={isa} asks for no more"
    return _Choice(library, KernelStatus("c", _NAMES[level], reason, str(LIBRARY)), level)


def _open() -> ctypes.CDLL:
    """The library, opened once and kept: its users declare their prototypes on it."""
    global _library
    if _library is None:
        if not LIBRARY.exists():
            why = NOT_BUILT.read_text().strip() if NOT_BUILT.exists() else "it was never built"
            raise _Unusable(f"there is no {LIBRARY}: {why}")
        try:
            library = ctypes.CDLL(str(LIBRARY))
            library.tb_abi.restype = library.tb_set_isa.restype = ctypes.c_int64
            library.tb_set_isa.argtypes = [ctypes.c_int]
            found: int = library.tb_abi()
        except (OSError, AttributeError) as error:
            raise _Unusable(f"{LIBRARY} does not load: {error}") from error
        if found != ABI:
            raise _Unusable(f"{LIBRARY} was built from other sources (ABI {found}, not {ABI}): build it anew")
        _library = library
    return _library
