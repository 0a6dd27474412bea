"""The kernels do the same on every processor and every instruction set, and stay within their buffers.

kernels_check.c calls all of them and prints digests. It is compiled for this processor, for aarch64 (which
QEMU then runs) and with the sanitizers. Compilers that are missing fail these tests where ``CI`` is set, and
skip them elsewhere.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "codecs" / "kernels"
CHECK = Path(__file__).with_name("kernels_check.c")
LEVELS = ("0", "1", "2")  # of kernels.h


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return path


def _compile(compiler: str, *options: str, out: Path) -> Path:
    """All kernels and the check as one program, as setup.py compiles them but for ``options``."""
    build = runpy.run_path(str(ROOT / "setup.py"))
    sources = [*sorted(KERNELS.glob("*.c")), CHECK]
    options = ("-Werror", *options, f"-I{KERNELS}", "-o", str(out))
    command = [compiler, *build["FLAGS"], *options, *sources, *build["LIBRARIES"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def _digests(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check, for this processor."""
    return _compile(_tool("cc"), out=tmp_path_factory.mktemp("native") / "check")


@pytest.fixture(scope="module")
def baseline(program: Path) -> str:
    """The digests of plain C on this processor."""
    return _digests(program, LEVELS[0])


def test_the_check_calls_every_kernel() -> None:
    """A kernel that Python could call and that the check does not call would go unseen by this file."""

    def preprocessed(*sources: Path) -> str:
        command = [_tool("cc"), "-E", "-P", f"-I{KERNELS}", *sources]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    exported = set(
        re.findall(r'visibility\("default"\)\)\)\s+\w+ (tb_\w+)', preprocessed(*KERNELS.glob("*.c")))
    )
    assert {"tb_abi", "tb_set_isa"} <= exported
    assert exported - set(re.findall(r"tb_\w+", preprocessed(CHECK))) == set()


def test_every_instruction_set_gives_the_same(program: Path, baseline: str) -> None:
    """Bytes, values and results of each level that this processor has are those of plain C."""
    assert len(baseline.splitlines()) > 2
    for level in LEVELS[1:]:
        assert _digests(program, level) in (baseline, "not here\n")


def test_aarch64_gives_the_same(baseline: str, tmp_path: Path) -> None:
    """Compiled for aarch64 without a warning, and run there: the digests of this processor."""
    program = _compile(_tool("aarch64-linux-gnu-gcc"), "-static", out=tmp_path / "check")
    assert _digests(_tool("qemu-aarch64"), program, LEVELS[0]) == baseline


def test_no_kernel_leaves_its_buffers(baseline: str, tmp_path: Path) -> None:
    """No access out of bounds and no undefined operation: odd addresses, odd lengths, damaged payloads."""
    sanitize = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = _compile(_tool("cc"), *sanitize, out=tmp_path / "check")
    for level in LEVELS:
        assert _digests(program, level) in (baseline, "not here\n")
