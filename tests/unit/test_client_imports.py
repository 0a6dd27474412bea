"""The client is light: what is not used is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tensorbus", ("numpy", "aiohttp", "torch", "click")),
        ("import tensorbus.cli.main", ("numpy", "aiohttp", "torch", "rich")),
        (
            "from tensorbus import Client, Delivery",
            ("torch", "bitsandbytes", "click", "rich", "tensorbus.bus.broker"),
        ),
    ],
)
def test_nothing_heavy_is_imported(statement: str, absent: tuple[str, ...]) -> None:
    """Importing the package, the command line or the client leaves out what each does not need."""
    script = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
