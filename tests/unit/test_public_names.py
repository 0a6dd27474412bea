"""The public names of the package."""

from __future__ import annotations

import importlib
import subprocess
import sys

import tensorbus


def test_every_public_name_is_there() -> None:
    """What ``__all__`` promises can be imported, and is the class of that name."""
    for name in tensorbus.__all__:
        found = getattr(tensorbus, name)
        assert name == "__version__" or found.__name__ == name


def test_importing_the_package_loads_nothing_else() -> None:
    """``import tensorbus`` costs next to nothing: no room of it, and no dependency, is loaded."""
    code = (
        "import sys, tensorbus; print([m for m in sys.modules if m.startswith('tensorbus.') or m == 'numpy'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    module = importlib.import_module("tensorbus")
    assert not hasattr(module, "NoSuchName")
