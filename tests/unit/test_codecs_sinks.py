"""Promises of the sinks about what a manifest claims: it is checked before memory is taken or looked at."""

from __future__ import annotations

import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.codecs.registry import serializer
from tensorbus.errors import LimitExceeded, ManifestMismatch

pytest.importorskip("torch")

BAD_VIEWS = {
    "beyond": View("owner", 7, (1,)),
    "stride": View("owner", 0, (5,)),
    "negative offset": View("owner", -1, (1,)),
    "negative stride": View("owner", 9, (-1,)),
    "dimensions": View("owner", 0, (1, 1)),
    "of itself": View("view", 0, (1,)),
    "of nothing": View("nobody", 0, (1,)),
    "of a scalar": View("scalar", 0, (1,)),
    "another dtype": View("integers", 0, (1,)),
    "huge": View("owner", 2**62, (2**62,)),
}


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("case", list(BAD_VIEWS))
def test_views_are_checked_against_their_owner(case: str, kind: str) -> None:
    """A view that reaches outside its owner, or has none, is refused before any memory is looked at."""
    sink = serializer(kind).sink()
    sink.begin(ItemSpec("owner", DTYPES["float32"], (2, 5)))
    sink.begin(ItemSpec("integers", DTYPES["int32"], (10,)))
    sink.begin(ItemSpec("scalar", DTYPES["uint8"], (1,), "scalar"))
    sink.buffer(ItemSpec("scalar", DTYPES["uint8"], (1,), "scalar"), 0, 1)[:] = b"\x05"
    sink.begin(ItemSpec("view", DTYPES["float32"], (4,), view=BAD_VIEWS[case]))
    with pytest.raises(ManifestMismatch, match="view"):
        sink.finish()


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("shape", [(2**62,), (2**40, 2**40), (2**63,)])
def test_impossible_sizes_are_refused(kind: str, shape: tuple[int, ...]) -> None:
    """A shape of more elements than any memory holds is a limit exceeded, not a crash."""
    with pytest.raises(LimitExceeded, match="enormous"):
        serializer(kind).sink().begin(ItemSpec("enormous", DTYPES["float32"], shape))
