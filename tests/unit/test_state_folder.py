"""A state folder is worked in by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensorbus.aggregator.state_folder import StateFolder
from tensorbus.errors import StoreInUse

OTHER = """
import sys
from pathlib import Path
from tensorbus.aggregator.state_folder import StateFolder
StateFolder(Path(sys.argv[1]), "sft--a").arriving()
"""


def test_a_second_process_of_a_site_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    """Both would write the same file; the error names the folder and says what to do."""
    folder = StateFolder(tmp_path, "sft--a")
    folder.arriving()
    other = [sys.executable, "-c", OTHER, str(tmp_path)]
    refused = subprocess.run(other, capture_output=True, text=True, check=False, timeout=60)
    assert (
        f"StoreInUse: the state folder {tmp_path / 'sft--a'} is in use by another process" in refused.stderr
    )
    with pytest.raises(StoreInUse):
        StateFolder(tmp_path, "sft--a").arriving()
    StateFolder(tmp_path, "sft--b").arriving()
    folder.arriving()


def test_the_next_process_has_it(tmp_path: Path) -> None:
    """Once the one before is gone, or its job is done."""
    folder = StateFolder(tmp_path, "sft--a")
    folder.arriving()
    del folder
    folder = StateFolder(tmp_path, "sft--a")
    folder.arriving()
    folder.remove()
    assert StateFolder(tmp_path, "sft--a").arriving().parent.exists()
