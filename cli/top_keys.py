"""Keys: what is typed at the terminal, letter by letter, while a picture is on it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

try:
    import termios
except ImportError:  # not a POSIX system: it is ended by Ctrl-C there
    termios = None


class Keys:
    """While it is open, keys are neither shown nor gathered into lines; Ctrl-C still is what it is.

    Without a terminal on standard input it does nothing.

    Args:
        pressed: told of each key, as text.
    """

    def __init__(self, pressed: Callable[[str], None]) -> None:
        self._pressed = pressed
        self._before: list[object] | None = None

    def __enter__(self) -> Self:
        if termios is None or not _at_terminal():
            return self
        self._descriptor = sys.stdin.fileno()
        try:
            self._before = termios.tcgetattr(self._descriptor)
            raw = termios.tcgetattr(self._descriptor)
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)
        except termios.error:  # a terminal that is gone, or that is another process's now
            self._before = None
            return self
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None and termios is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)  # pyright: ignore[reportArgumentType] - its own answer
            self._before = None

    def _read(self) -> None:
        try:
            typed = os.read(self._descriptor, 64)
        except OSError:
            typed = b""
        if not typed:  # the terminal has gone: nobody is left to look
            self._pressed("q")
            asyncio.get_running_loop().remove_reader(self._descriptor)
            return
        for letter in typed.decode("utf-8", "replace"):
            self._pressed(letter)


def _at_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # closed, or none at all
        return False
