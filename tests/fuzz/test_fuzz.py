"""Coverage-guided fuzzing, for a short while; docs/testing.md says how to do it for long."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzing.seeds import write

SECONDS = int(os.environ.get("TENSORBUS_FUZZ_SECONDS", "10"))
"""For each target."""
FEWEST = 100
"""Inputs below which a run says nothing."""


@pytest.mark.parametrize("target", ["frames", "http", "tus"])
def test_no_input_breaks_it(target: str, tmp_path: Path) -> None:
    """Whatever comes in: an error of ours, an answer below 500; no crash, no hang, bounded memory."""
    if not os.environ.get("CI"):
        pytest.importorskip("atheris", exc_type=ImportError)
    corpus = tmp_path / "corpus"
    write(target, corpus)
    # By way of a shell: a process begins with the peak of memory of the one that forked it, and here that is
    # a worker of pytest with torch in it, beyond what the fuzzer allows its own.
    done = subprocess.run(
        (
            "sh",
            "-c",
            '"$@"; exit $?',
            "sh",
            sys.executable,
            "-m",
            f"fuzzing.{target}",
            f"-max_total_time={SECONDS}",
            str(corpus),
        ),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    inputs = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    assert inputs is not None and int(inputs[1]) > FEWEST, done.stdout[-3000:]
    print(target, inputs[1], "inputs")
