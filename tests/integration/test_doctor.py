"""`tensorbus doctor`, as a process: what it says is so, and its exit code is that of its findings.

What it says of libraries that are missing or do not fit is in test_kernels_build.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from tensorbus import __version__
from tensorbus.codecs.kernels import forced
from tensorbus.codecs.registry import QUANTIZERS, SERIALIZERS, STAGES
from tensorbus.errors import KernelsUnavailable

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TENSORBUS_")}


def _doctor(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensorbus", "doctor", *flags],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_says_what_is_installed() -> None:
    """The same for people and programs: versions, the checksum, codecs and stages; nothing is broken."""
    done = _doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["tensorbus"] == __version__
    assert found["torch"] == version("torch")
    assert found["crc32c"] in ("c", "python")
    assert found["quantizers"][: len(QUANTIZERS)] == list(QUANTIZERS)
    assert found["stages"][: len(STAGES)] == list(STAGES)
    assert found["serializers"][: len(SERIALIZERS)] == list(SERIALIZERS)
    assert "gpus" not in found

    words = _doctor()
    assert (words.returncode, words.stderr) == (0, "")
    for subject in ("tensorbus", "processor", "kernels", "nf4-dq", "feedback", found["kernels"]["reason"]):
        assert subject in words.stdout


def test_the_kernels_are_those_that_the_environment_asks_for() -> None:
    """Of each choice and instruction set: the one in use, and why; or what is wrong, and exit code 1."""
    for kernels in ("numpy", "torch"):
        found = json.loads(_doctor("--json", TENSORBUS_KERNELS=kernels).stdout)["kernels"]
        assert (found["kind"], found["isa"], found["path"]) == ("numpy", None, None)
        assert f"TENSORBUS_KERNELS={kernels}" in found["reason"]
    for isa in ("baseline", "neon", "avx2", "avx512"):
        done = _doctor("--json", TENSORBUS_KERNELS="c", TENSORBUS_ISA=isa)
        found = json.loads(done.stdout)["kernels"]
        try:
            with forced("c", isa) as here:
                expected, errors = asdict(here), ""
        except KernelsUnavailable as error:
            expected, errors = None, f"broken: {error}\n"
        assert (found, done.stderr, done.returncode) == (expected, errors, 1 if errors else 0)


@pytest.mark.parametrize("environment", [{"TENSORBUS_KERNELS": "gpu"}, {"TENSORBUS_ISA": "sse9"}])
def test_nonsense_in_the_environment_is_found(environment: dict[str, str]) -> None:
    """The variable, its value and what it may be are named; the rest is still told."""
    done = _doctor("--json", **environment)
    assert done.returncode == 1
    [(name, value)] = environment.items()
    assert f"{name}='{value}' is none of " in done.stderr
    found = json.loads(done.stdout)
    assert found["kernels"] is None
    assert len(found["problems"]) == 1
    assert found["tensorbus"] == __version__


def test_torch_is_imported_only_when_asked(tmp_path: Path) -> None:
    """A torch that cannot be imported is no business of the plain command; with `--torch` it is broken."""
    (tmp_path / "torch.py").write_text("raise ImportError('a torch that does not work')\n")
    assert _doctor(PYTHONPATH=str(tmp_path)).returncode == 0
    done = _doctor("--torch", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "torch is installed but does not import: a torch that does not work" in done.stderr


def test_the_gpus_are_those_of_torch() -> None:
    """`--torch` lists them by name, none where there is none."""
    import torch

    done = _doctor("--torch", "--json")
    assert done.returncode == 0
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    assert json.loads(done.stdout)["gpus"] == names


def test_a_plug_in_that_does_not_load_is_found(tmp_path: Path) -> None:
    """It is listed among the codecs, and named with its group and its error."""
    info = tmp_path / "plug-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tensorbus.quantizers]\nsquare = no_such_module:Square\n")
    done = _doctor("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "'square' of tensorbus.quantizers does not load: ModuleNotFoundError" in done.stderr
    assert "square" in json.loads(done.stdout)["quantizers"]
