"""Promises of the codecs inside NVIDIA FLARE: real DXOs and serialisation, and a job in its simulator."""

# nvflare and torch are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.app_opt.pt.quantization.quantizer import ModelQuantizer
from nvflare.fuel.utils import fobs

from tensorbus.errors import (
    ChecksumMismatch,
    FrameError,
    InvalidRequest,
    InvalidSpecification,
    NonFiniteValues,
    UnknownCodec,
    UnsupportedContainer,
)
from tensorbus.integrations.nvflare import ALGORITHM, TensorbusDecoder, TensorbusEncoder

JOB = Path(__file__).with_name("nvflare_job.py")


@pytest.fixture(autouse=True)
def decomposers() -> None:  # pyright: ignore[reportUnusedFunction]
    """What FLARE registers in its processes."""
    torch.set_num_threads(1)
    fobs.register(TensorDecomposer)
    fobs.register(NumpyArrayDecomposer)


def weights() -> dict[str, Any]:
    """Parameters of a model, as numpy has them."""
    random = np.random.default_rng(0)
    return {
        "weight": random.normal(size=(512, 256)).astype(np.float32),
        "norm": np.ones(256, np.float32),
        "half": random.normal(size=(64, 64)).astype(np.float16),
        "steps": np.array(7, np.int64),
    }


def tensors() -> dict[str, Any]:
    """The same as torch has them, one of them in bf16."""
    made = {name: torch.from_numpy(np.asarray(array)) for name, array in weights().items()}
    return {**made, "half": made["half"].to(torch.bfloat16)}


def shareable(data: dict[str, Any], kind: str = DataKind.WEIGHTS) -> Shareable:
    """As an executor gives it."""
    return DXO(kind, data, {MetaKey.NUM_STEPS_CURRENT_ROUND: 12}).to_shareable()


def through(given: Shareable) -> Shareable:
    """FLARE's serialisation and back."""
    return cast("Shareable", fobs.loads(fobs.dumps(given)))


def process(filter_: Any, given: Shareable) -> Shareable:
    """What a site does with a filter."""
    return cast("Shareable", filter_.process(given, FLContext()))


@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
@pytest.mark.parametrize("make", [weights, tensors])
@pytest.mark.parametrize("codec", ["none", "int8", "nf4", "rotate | lloyd:4", "uniform"])
def test_weights_come_back_as_they_were(codec: str, make: Any, kind: str) -> None:
    """Names, dtypes, shapes, kind and properties; kept names bit for bit, others within the codec's error."""
    plain = make()
    sent = through(process(TensorbusEncoder(codec, keep=["norm"]), shareable(plain, kind)))
    coded = from_shareable(sent)
    assert (coded.data_kind, list(coded.data)) == (kind, list(plain))
    got = from_shareable(process(TensorbusDecoder(), sent))
    assert got.data_kind == kind
    assert got.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 12
    assert got.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) is None
    assert list(got.data) == list(plain)
    for name, value in plain.items():
        assert type(got.data[name]) is type(value)
        assert (got.data[name].dtype, got.data[name].shape) == (value.dtype, value.shape)
        one, other = (np.asarray(torch.as_tensor(each).double()) for each in (got.data[name], value))
        if codec == "none" or name in ("norm", "steps"):
            np.testing.assert_array_equal(one, other)
        else:
            assert 0 < np.sqrt(((one - other) ** 2).mean()) < 0.15


def test_the_sizes_are_those_of_flares_own_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """nf4 is 14.06 % in both; theirs wants a GPU, and computes on the CPU here."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # pyright: ignore[reportUnknownLambdaType]
    plain = {
        "weight": torch.from_numpy(np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32))
    }
    size = plain["weight"].nbytes
    theirs = from_shareable(process(ModelQuantizer("normfloat4"), shareable(dict(plain))))
    state = theirs.meta["quant_state"]["weight"]
    their_size = theirs.data["weight"].nbytes + state["absmax"].nbytes
    ours = len(fobs.dumps(process(TensorbusEncoder("nf4"), shareable(dict(plain)))))
    assert their_size / size == pytest.approx(0.1406, abs=0.0001)
    assert ours / size == pytest.approx(0.1406, abs=0.001)
    got = from_shareable(
        process(TensorbusDecoder(), process(TensorbusEncoder("nf4"), shareable(dict(plain))))
    )
    from bitsandbytes.functional import QuantState, dequantize_4bit

    known = QuantState(
        absmax=state["absmax"],
        shape=torch.Size(state["shape"]),
        code=state["quant_map"],
        blocksize=state["blocksize"],
        quant_type="nf4",
        dtype=torch.float32,
    )
    torch.testing.assert_close(
        got.data["weight"], dequantize_4bit(theirs.data["weight"], known, quant_type="nf4"), rtol=0, atol=0
    )


def test_what_is_encoded_passes_the_encoder_and_what_is_plain_the_decoder() -> None:
    """A server filters the same task data once for each client; other kinds are left alone."""
    encoder, decoder = TensorbusEncoder("nf4"), TensorbusDecoder()
    plain = weights()
    before = {name: value.copy() for name, value in plain.items()}
    first = process(encoder, shareable(plain))
    again = from_shareable(process(encoder, first))
    assert again.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) == ALGORITHM
    once = from_shareable(process(decoder, first))
    twice = from_shareable(process(decoder, process(decoder, first)))
    for name, value in before.items():
        np.testing.assert_array_equal(plain[name], value)
        np.testing.assert_array_equal(once.data[name], twice.data[name])
    untouched = from_shareable(process(decoder, shareable(plain)))
    assert untouched.data is plain
    metrics = DXO(DataKind.METRICS, {"loss": 1.0}).to_shareable()
    assert from_shareable(process(encoder, metrics)).data == {"loss": 1.0}
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    assert process(encoder, failed) is failed


def test_a_collection_is_encoded_leaf_by_leaf() -> None:
    """As FLARE's own filters do."""
    leaves = {"a": DXO(DataKind.WEIGHTS, weights()), "b": DXO(DataKind.METRICS, {"loss": 1.0})}
    sent = process(TensorbusEncoder("bf16"), DXO(DataKind.COLLECTION, leaves).to_shareable())
    got = from_shareable(process(TensorbusDecoder(), through(sent))).data
    np.testing.assert_allclose(got["a"].data["weight"], weights()["weight"], rtol=0.01)
    assert got["b"].data == {"loss": 1.0}


def test_what_cannot_be_done_is_refused() -> None:
    """Codecs that need what there is not, at once; NaN, strangers and processed weights, by name."""
    for codec in ("delta | nf4", "feedback | nf4"):
        with pytest.raises(InvalidSpecification, match="there is none"):
            TensorbusEncoder(codec)
    with pytest.raises(UnknownCodec):
        TensorbusEncoder("nf5")
    encoder = TensorbusEncoder("nf4")
    with pytest.raises(NonFiniteValues, match="bad"):
        process(encoder, shareable({"bad": np.full(999, np.nan, np.float32)}))
    with pytest.raises(UnsupportedContainer, match="nested"):
        process(encoder, shareable({"a": np.ones(3), "nested": {"b": np.ones(3)}}))
    encrypted = DXO(DataKind.WEIGHTS, {"a": b"?"}, {MetaKey.PROCESSED_ALGORITHM: "CKKS"}).to_shareable()
    with pytest.raises(InvalidRequest, match="CKKS"):
        process(encoder, encrypted)


def test_damage_is_found() -> None:
    """A bit, a missing parameter, a stranger."""
    decoder = TensorbusDecoder()
    coded = from_shareable(process(TensorbusEncoder("nf4"), shareable(weights())))

    def decode(data: dict[str, Any]) -> None:
        process(decoder, DXO(coded.data_kind, data, dict(coded.meta)).to_shareable())

    decode(dict(coded.data))
    flipped = coded.data["weight"].copy()
    flipped[flipped.size // 2] ^= 1
    with pytest.raises(ChecksumMismatch):
        decode({**coded.data, "weight": flipped})
    with pytest.raises(FrameError):
        decode({name: part for name, part in coded.data.items() if name != "steps"})
    with pytest.raises(UnsupportedContainer, match="norm"):
        decode({**coded.data, "norm": np.ones(3, np.float32)})


def test_a_job_runs_in_flares_simulator(tmp_path: Path) -> None:
    """Two clients, two rounds, filters at all four places, from configuration files alone."""
    run = subprocess.run(
        [sys.executable, str(JOB), str(tmp_path), "int8"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    saved = next((tmp_path / "work").rglob("*.npy"))
    start = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    np.testing.assert_allclose(np.load(saved), start + 2, atol=0.15)  # each round adds one
    assert np.abs(np.load(saved) - start - 2).max() > 1e-5  # and int8 rounds
    # The server encodes for two clients in each of two rounds, and each client its reply.
    assert run.stdout.count("1 parameters, 16384 bytes as ") == 8
