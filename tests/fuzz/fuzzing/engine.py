"""Runs a target under atheris: Tensorbus is instrumented as it is imported, after this module."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportAttributeAccessIssue=false
# (atheris has no annotations.)

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import atheris

DEFAULTS = (
    "-rss_limit_mb=2048",
    "-malloc_limit_mb=1024",
    "-timeout=20",
    "-print_final_stats=1",
    "-max_len=65536",
)
"""Of libFuzzer: what takes more memory or time than this is a finding. The command line may say otherwise."""


def instrumented(include: Sequence[str]) -> AbstractContextManager[None]:
    """``with instrumented(include=["tensorbus"]): import …``"""
    return atheris.instrument_imports(include=list(include))


def fuzz(target: Callable[[bytes], None]) -> None:
    """Feed ``target`` with inputs; whatever it raises is a finding, and ends the run with an exit code."""
    atheris.Setup([sys.argv[0], *DEFAULTS, *sys.argv[1:]], target)
    atheris.Fuzz()


def golden() -> dict[str, bytes]:
    """The golden messages, by name: where every mutation begins."""
    folder = Path(__file__).resolve().parents[2] / "golden" / "frames"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.frames"))}
