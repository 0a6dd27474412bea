"""Promises of the registry: plug-ins come by entry point, and nothing is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorbus.codecs.registry import quantizer, serializer, serializer_for
from tensorbus.errors import UnknownCodec

PLUGIN = """
from tensorbus.codecs.base import Stage
from tensorbus.codecs.quantizers.none import NoQuantizer
from tensorbus.codecs.serializers.numpy import NumpySerializer

class Mine(NoQuantizer):
    name = "mine"
    def __init__(self, level=1):
        self.level = level
    def config(self):
        return {"name": "mine", "level": self.level}

class Impostor(Mine):
    name = "nf4"

class Through(Stage):
    name = "through"
    primary = "depth"
    def __init__(self, depth=0.5):
        self.depth = depth
    def config(self):
        return {"name": "through", "depth": self.depth}
    def accepts(self, dtype):
        return True
    def inner_dtype(self, dtype):
        return dtype
    def wrap(self, inner, spec, context):
        return inner

class Lists(NumpySerializer):
    name = "lists"
    @classmethod
    def recognises(cls, container):
        return isinstance(container, list)
"""

ENTRY_POINTS = """
[tensorbus.quantizers]
mine = my_codecs:Mine
nf4 = my_codecs:Impostor
broken = my_codecs:PLUGIN
wrong = my_codecs:Through
[tensorbus.stages]
through = my_codecs:Through
rotate = my_codecs:Through
[tensorbus.serializers]
lists = my_codecs:Lists
"""

PROGRAM = """
import json
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.registry import quantizer, serializer, serializer_for, stage
from tensorbus.errors import UnknownCodec
found = {
    "mine": Pipeline.parse("mine:level=3").to_json()["quantizer"],
    "nf4": type(quantizer("nf4")).__name__,
    "through": Pipeline.parse("through:-1.5e1 | nf4").to_json()["stages"],
    "rotate": type(stage("rotate")).__name__,
    "lists": [serializer_for([]).name, serializer("lists").name],
}
for make, name in ((quantizer, "nothing"), (stage, "nothing"), (quantizer, "wrong")):
    try:
        make(name)
    except UnknownCodec as error:
        found[f"{make.__name__} {name}"] = str(error)
print(json.dumps(found))
"""


def test_plug_ins_come_by_entry_point(tmp_path: Path) -> None:
    """An installed package adds quantizers, stages and serializers, but cannot take over a built-in name."""
    (tmp_path / "my_codecs.py").write_text(PLUGIN)
    info = tmp_path / "my_codecs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-codecs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["mine"] == {"name": "mine", "level": 3}
    assert found["nf4"] == "NF4"
    assert found["lists"] == ["lists", "lists"]
    assert found["through"] == [{"name": "through", "depth": -15.0}]
    assert found["rotate"] == "Rotate"
    assert "mine" in found["quantizer nothing"]
    assert "delta, same, feedback, rotate, clip, gauss, through" in found["stage nothing"]
    assert "is no Quantizer" in found["quantizer wrong"]


def test_a_quantizer_is_made_once_for_equal_configurations() -> None:
    """Slices carry their configuration, so that looking it up is cheap."""
    assert quantizer({"name": "nf4", "blocksize": 64}) is quantizer({"blocksize": 64, "name": "nf4"})


def test_unknown_serializers_are_refused() -> None:
    """The error names what is installed."""
    with pytest.raises(UnknownCodec, match="torch, numpy"):
        serializer("pickle")


def test_containers_are_recognised_by_themselves() -> None:
    """Arrays make a numpy container, tensors and Modules a torch one."""
    torch = pytest.importorskip("torch")
    assert serializer_for({"a": np.ones(1)}).name == "numpy"
    assert serializer_for({"step": 1}).name == "numpy"
    assert serializer_for({"a": torch.ones(1)}).name == "torch"
    assert serializer_for({"step": 1, "a": torch.ones(1)}).name == "torch"
    assert serializer_for(torch.nn.Linear(1, 1)).name == "torch"
