"""What the broker needs to be installed and in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import sys
import {module}
heavy = ("numpy", "torch", "bitsandbytes", "safetensors", "tensorbus.codecs")
print(*[name for name in sys.modules if name.startswith(heavy)])
"""


@pytest.mark.parametrize(
    "module", ["tensorbus.bus.broker", "tensorbus.bus.stores.file", "tensorbus.bus.messages"]
)
def test_the_broker_imports_no_codec_and_no_numpy(module: str) -> None:
    """Law 3: the broker moves frames and never opens them."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
