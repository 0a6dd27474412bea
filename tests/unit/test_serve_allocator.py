"""The allocator settings that `tensorbus serve` starts with."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_the_thresholds() -> None:
    """All options are accepted; in a process of its own, because they cannot be taken back."""
    program = "from tensorbus.cli.allocator import keep_large_buffers; print(keep_large_buffers())"
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
