"""Where the fuzzers begin: `python -m fuzzing.seeds TARGET FOLDER` writes a corpus.

The frames' are the golden messages, each in the ways in which the target may be fed; the others' are bytes of
which `fuzzing.requests` makes whole conversations.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "frames"
CONVERSATIONS = 64


def write(target: str, folder: Path) -> None:
    """Write the seeds of a target; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if target == "frames":
        for path in sorted(GOLDEN.glob("*.frames")):
            for how in (0, 1, 3, 15):
                (folder / f"{path.stem}-{how}").write_bytes(bytes([how]) + path.read_bytes())
        return
    for number in range(CONVERSATIONS):
        chance = random.Random(f"{target} {number}")
        (folder / f"{number}").write_bytes(chance.randbytes(chance.choice((20, 60, 200, 600))))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
