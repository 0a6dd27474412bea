"""Promises of the codecs that work where a tensor lies: on a GPU where there is one, and forced on the CPU.

``cpu`` takes CPU tensors for tensors of a device: all is as on CUDA but the streams, the pinned memory and
bitsandbytes' kernels, which are those for CPUs.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping
from typing import cast

import pytest
import torch
from bitsandbytes import functional

from tensorbus.codecs.base import Sink
from tensorbus.codecs.chain import QuantizerCodec, bind
from tensorbus.codecs.context import CodecContext
from tensorbus.codecs.devices import DeviceDecoder, DeviceEncoder, buffer_maker, device_encoder, lookup
from tensorbus.codecs.item import Item, ItemSpec
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.codecs.residuals import MemoryResiduals
from tensorbus.codecs.serializers.mapping import MappingSink, items_of
from tensorbus.codecs.serializers.torch import TorchSerializer, TorchTensors
from tensorbus.errors import CodecError, NonFiniteValues, PayloadMismatch
from tensorbus.streaming.buffers import BufferPool
from tensorbus.streaming.container import ContainerDecoder, ContainerEncoder
from tensorbus.streaming.frames import FrameParser
from tensorbus.streaming.headers import Envelope
from tensorbus.streaming.sequence import MessageChecker
from tensorbus.streaming.sources import ItemSource

CODECS = ("fp16", "bf16", "int8", "int8:blocksize=256", "fp4", "nf4", "nf4:blocksize=128")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((64,), (128, 64), (1000, 80), (4096, 16), (4097,), (63,), (7, 11), (1,), ())
DEVICES = (
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
)

on_each_device = pytest.mark.parametrize("device", DEVICES)
with_each_codec = pytest.mark.parametrize("codec", CODECS)
with_each_pair = pytest.mark.parametrize(
    ("codec", "dtype"),
    # fp16 and bf16 are not for floats of 16 bits.
    [(codec, dtype) for codec in CODECS for dtype in DTYPES if codec[-2:] != "16" or dtype.itemsize > 2],
    ids=str,
)


class ForcedTensors(TorchTensors):
    """Takes every tensor of floats for one that lies on a device."""

    def direct(self, array: torch.Tensor) -> memoryview | None:
        return None

    def device(self, array: torch.Tensor) -> str | None:
        return str(array.device) if array.is_floating_point() else None


class OnDeviceOnly(Item):
    """An item that cannot be read into the host's memory."""

    concurrent = True

    def __init__(self, item: Item) -> None:
        self.spec, self.device, self.device_slice = item.spec, item.device, item.device_slice

    def read(self, offset: int, count: int) -> memoryview:
        raise AssertionError("the values come to the host")


class DeviceOnlySink(MappingSink[torch.Tensor]):
    """A sink without memory on the host."""

    def buffer(self, spec: ItemSpec, offset: int, count: int) -> memoryview:
        raise AssertionError("the values are decoded on the host")


def items(container: Mapping[str, object], device: str) -> list[Item]:
    """Items of tensors on ``device``, none of which is taken for memory of the host's."""
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in container.items()
    }
    return items_of(cast("Mapping[object, object]", moved), tensors(device))


def tensors(device: str) -> TorchTensors:
    """What sees a tensor on ``device``, be it the CPU, as one that is on a device."""
    return ForcedTensors() if device == "cpu" else TorchTensors()


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normally distributed weights."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def host_payload(tensor: torch.Tensor, codec: str) -> bytes:
    """The payload that the quantizer makes on the host."""
    item = TorchSerializer().items({"t": tensor})[0]
    chosen = Pipeline.parse(codec).quantizer
    payload = memoryview(bytearray(chosen.encoded_size(item.spec.count, item.spec.dtype)))
    chosen.encode(item.read(0, item.spec.count).cast("B"), item.spec.dtype, payload)
    return bytes(payload)


def host_decoded(payload: bytes, tensor: torch.Tensor, codec: str) -> torch.Tensor:
    """What the host decodes of ``payload``, in shape and dtype of ``tensor``."""
    item = TorchSerializer().items({"t": tensor})[0]
    out = torch.empty(item.spec.nbytes, dtype=torch.uint8)
    Pipeline.parse(codec).quantizer.decode(memoryview(payload), item.spec.dtype, out.numpy().data)
    return out.view(tensor.dtype).view(tensor.shape)


def encoder(item: Item, codec: str) -> DeviceEncoder:
    """What encodes ``item`` on its device, whether or not it gets smaller by that."""
    found = lookup.device_codec(chain(item, codec), cast(str, item.device))
    assert found is not None
    return DeviceEncoder(item, found)


def chain(item: Item, codec: str) -> QuantizerCodec:
    """The plain codec for ``item``."""
    return QuantizerCodec(Pipeline.parse(codec).quantizer, item.spec.dtype)


def device_payload(tensor: torch.Tensor, codec: str, device: str) -> bytes:
    """The payload of all of ``tensor``, made on ``device``."""
    (item,) = items({"t": tensor}, device)
    out = memoryview(bytearray(8 * item.spec.count + 64))
    encoded = encoder(item, codec).encode(0, item.spec.count, out)
    return bytes(out[: encoded.nbytes])


def device_decoded(payload: bytes, tensor: torch.Tensor, codec: str, device: str) -> torch.Tensor:
    """What ``device`` decodes of ``payload``, brought back."""
    target = torch.full((tensor.numel() + 2,), 7.0, device=device, dtype=tensor.dtype)
    (item,) = items({"t": tensor}, device)
    decoder = DeviceDecoder()
    assert decoder.decode(chain(item, codec), memoryview(payload), target[1:-1])
    decoder.settle()
    assert target[0] == target[-1] == 7, "nothing is written beside the slice"
    return target[1:-1].cpu().view(tensor.shape)


def strays(codec: str, exact: bool) -> float:
    """The share of values that may get a code next to the nearest.

    With bitsandbytes on CPUs (``exact``) that is none, but for int8, which it looks up in even steps; on CUDA
    those on the border, which 16-bit floats hit now and then.
    """
    return 0.0 if exact and not codec.startswith("int8") else 0.01


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values; 0 and -0 are the same."""
    return one.dtype == other.dtype and torch.equal(one, other)


# --- payloads ------------------------------------------------------------------------------------------


@on_each_device
@with_each_pair
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_host_decodes_what_a_device_encodes(
    device: str, codec: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """The layout is the host's, whole blocks, tails and odd counts alike; the values are the host's too, but
    for some on the border between two codes."""
    tensor = values(shape, dtype)
    payload, reference = device_payload(tensor, codec, device), host_payload(tensor, codec)
    assert len(payload) == len(reference)
    decoded, expected = host_decoded(payload, tensor, codec), host_decoded(reference, tensor, codec)
    assert int((decoded != expected).sum()) <= strays(codec, device == "cpu") * tensor.numel()
    # Where it is another code, it is one next to it: the error is hardly larger.
    error, least = (decoded - tensor).abs().double().max(), (expected - tensor).abs().double().max()
    assert error <= least * 1.05 + 1e-9


@on_each_device
@with_each_pair
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_device_decodes_what_the_host_encodes(
    device: str, codec: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """To the same bits as the host does, in the original dtype, and nowhere else than in its slice."""
    tensor = values(shape, dtype)
    payload = host_payload(tensor, codec)
    assert same_bits(device_decoded(payload, tensor, codec, device), host_decoded(payload, tensor, codec))


@on_each_device
@pytest.mark.parametrize("codec", ["int8:blocksize=64", "fp4", "nf4"])
def test_blocks_of_zeros_decode_to_zeros(device: str, codec: str) -> None:
    """Whatever code a device gives them, in a whole block and in a tail."""
    tensor = torch.zeros(4096 + 70)
    tensor[64:128] = 1
    decoded = host_decoded(device_payload(tensor, codec, device), tensor, codec)
    assert torch.equal(decoded, tensor) and not decoded.isnan().any()
    assert torch.equal(device_decoded(device_payload(tensor, codec, device), tensor, codec, device), tensor)


@on_each_device
@pytest.mark.parametrize("codec", ["fp16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rounding_to_16_bits_is_the_hosts(device: str, codec: str, dtype: torch.dtype) -> None:
    """To the bit: ties to even, a float64 by way of float32, denormals, both ends of the range."""
    largest = torch.finfo(torch.float16 if codec == "fp16" else torch.bfloat16).max
    edges = [1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11 + 2**-40, 0.0, -0.0]
    edges += [1e-7, 6e-8, 2.0**-25, 1e-40, largest, -largest]
    tensor = torch.cat([torch.tensor(edges, dtype=torch.float64), values((5000,), torch.float64)]).to(dtype)
    assert device_payload(tensor, codec, device) == host_payload(tensor, codec)


@on_each_device
@pytest.mark.parametrize(("codec", "beyond"), [("fp16", 65505.0), ("bf16", 3.4e38)])
def test_clipped_values_are_counted(device: str, codec: str, beyond: float) -> None:
    """As on the host: clipped to the largest finite number, and told."""
    tensor = torch.tensor([1.0, beyond, -beyond, 2.0])
    (item,) = items({"t": tensor}, device)
    out = memoryview(bytearray(64))
    assert encoder(item, codec).encode(0, 4, out).clipped == 2
    assert bytes(out[:8]) == host_payload(tensor, codec)


@on_each_device
@with_each_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 4000, 4098])
def test_non_finite_values_are_refused(device: str, codec: str, bad: float, at: int) -> None:
    """A NaN or Inf anywhere in a slice, though the kernels' own absmax passes NaN over."""
    tensor = values((4099,), torch.float32)
    tensor[at] = bad
    with pytest.raises(NonFiniteValues):
        device_payload(tensor, codec, device)


@on_each_device
@pytest.mark.parametrize("codec", ["int8", "fp4", "nf4"])
def test_a_float64_beyond_float32_is_refused(device: str, codec: str) -> None:
    """It would be Inf in the precision in which blocks are scaled."""
    tensor = torch.ones(100, dtype=torch.float64)
    tensor[3] = 1e39
    with pytest.raises(NonFiniteValues):
        device_payload(tensor, codec, device)


@on_each_device
@with_each_codec
def test_slices_are_the_whole(device: str, codec: str) -> None:
    """A tensor encoded in slices at multiples of the block size decodes to what it does as a whole."""
    tensor = values((3 * 4096 + 100,), torch.float32)
    (item,) = items({"t": tensor}, device)
    whole = host_decoded(device_payload(tensor, codec, device), tensor, codec)
    for offset, count in ((0, 4096), (4096, 4096), (8192, 4196)):
        out = memoryview(bytearray(4 * count + 64))
        encoded = encoder(item, codec).encode(offset, count, out)
        part = tensor[offset : offset + count]
        decoded = host_decoded(bytes(out[: encoded.nbytes]), part, codec)
        assert torch.equal(decoded, whole[offset : offset + count])


@on_each_device
def test_a_strided_tensor_is_encoded_in_c_order(device: str) -> None:
    """Gathered on the device, slice by slice."""
    tensor = values((80, 100), torch.float32)
    (item,) = items({"t": tensor.to(device).t()}, device)
    out = memoryview(bytearray(8192))
    encoded = encoder(item, "nf4").encode(640, 1000, out)
    part = tensor.t().contiguous().view(-1)[640:1640]
    assert torch.equal(
        host_decoded(bytes(out[: encoded.nbytes]), part, "nf4"),
        host_decoded(host_payload(part, "nf4"), part, "nf4"),
    )


@on_each_device
@with_each_codec
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_payload_of_the_wrong_size_is_refused(device: str, codec: str, wrong: int) -> None:
    """Before any byte of it reaches the device."""
    tensor = values((130,), torch.float32)
    payload = host_payload(tensor, codec) + bytes(1)
    with pytest.raises(PayloadMismatch):
        device_decoded(payload[: len(payload) - 1 + wrong], tensor, codec, device)


@on_each_device
def test_a_payload_may_be_overwritten_at_once(device: str) -> None:
    """As soon as ``decode`` returns, though its values are in place only after ``settle``."""
    target, decoder = torch.empty((20, 4096), device=device), DeviceDecoder()
    (item,) = items({"t": target}, device)
    rows = values((20, 4096), torch.float32)
    buffer = bytearray(len(host_payload(rows[0], "nf4")))
    for row, place in zip(rows, target, strict=True):
        buffer[:] = host_payload(row, "nf4")
        decoder.decode(chain(item, "nf4"), memoryview(buffer), place)
        buffer[:] = bytes(len(buffer))
    decoder.settle()
    for row, place in zip(rows, target.cpu(), strict=True):
        assert torch.equal(place, host_decoded(host_payload(row, "nf4"), row, "nf4"))


@on_each_device
@pytest.mark.parametrize("code", ["fp4", "nf4"])
def test_bitsandbytes_reads_what_a_device_encodes(device: str, code: str) -> None:
    """The payload, cut in two, is a quantised tensor to plain bitsandbytes."""
    tensor = values((1024, 64), torch.float32)
    payload = device_payload(tensor, code, device)
    codes = torch.frombuffer(bytearray(payload[: tensor.numel() // 2]), dtype=torch.uint8)
    absmax = torch.frombuffer(bytearray(payload[tensor.numel() // 2 :]), dtype=torch.float32)
    state = functional.QuantState(absmax, tensor.shape, blocksize=64, quant_type=code, dtype=torch.float32)
    theirs = functional.dequantize_4bit(codes, state)
    assert torch.equal(theirs.view(-1), host_decoded(payload, tensor, code).view(-1))


# --- whole messages ------------------------------------------------------------------------------------


def message(sequence: list[Item], codec: str, threads: int) -> bytes:
    """The frames of a message whose items lie on a device, from pooled buffers as a publisher has them."""
    encoder = ContainerEncoder(ItemSource("torch", sequence), Pipeline.parse(codec, ["*norm*"]), {})
    pool = BufferPool(threads + 2, make=encoder.new_buffer)
    data = bytearray()
    for frame in encoder.frames(pool.acquire, threads):
        data += frame.head
        data += frame.payload
        if frame.buffer is not None:
            pool.release(frame.buffer)
    return bytes(data)


def received(data: bytes, sink: Sink, pieces: int = 70_001) -> dict[str, object]:
    """What a subscriber makes of a message."""
    checker, parser = MessageChecker(), FrameParser()

    def make_sink(envelope: Envelope) -> Sink:
        return sink

    decoder = ContainerDecoder(checker, make_sink)
    for start in range(0, len(data), pieces):
        for frame in parser.feed(data[start : start + pieces]):
            checker.accept(frame)
            decoder.accept(frame)
    return cast("dict[str, object]", decoder.finish())


def model() -> dict[str, object]:
    """A small model with what models have: LoRA pairs, biases, norms, counters, tied and empty tensors."""
    embedding = values((3001, 512), torch.float32, 1)
    return {
        "embedding": embedding,
        "lora_a": values((16, 4096), torch.float32, 2),
        "lora_b": values((1000, 80), torch.bfloat16, 3),
        "half": values((777, 3), torch.float16, 4),
        "double": values((501,), torch.float64, 5),
        "norm.weight": torch.ones(512) + values((512,), torch.float32, 6),
        "scale": torch.tensor(0.5),
        "empty": torch.empty(0, 4),
        "counter": torch.tensor([1, 2, 3]),
        "strided": values((90, 70), torch.float32, 7).t(),
        "head": embedding,
        "step": 17,
    }


@pytest.mark.parametrize("codec", ["none", *CODECS, "nf4-dq"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("target", DEVICES)
@pytest.mark.parametrize("source", DEVICES)
def test_a_whole_model_crosses(source: str, target: str, threads: int, codec: str) -> None:
    """From device to host, from host to device and from device to device: to the values that the host alone
    makes of it, dtypes and shapes included; ``none`` and what is kept to the bit."""
    container = model()
    data = message(items(container, source), codec, threads)
    into = {
        name: torch.zeros_like(value, device=target) if isinstance(value, torch.Tensor) else 0
        for name, value in container.items()
    }
    arrived = received(data, MappingSink(tensors(target), into))
    expected = received(
        message(list(TorchSerializer().items(container)), codec, 1), MappingSink(TorchTensors(), None)
    )
    assert arrived.keys() == container.keys() and arrived["step"] == 17
    for name, value in arrived.items():
        if not isinstance(value, torch.Tensor):
            continue
        found, wanted = value.cpu(), cast(torch.Tensor, expected[name])
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert int((found != wanted).sum()) <= strays(codec, source == "cpu") * found.numel(), name


@on_each_device
def test_an_arriving_model_keeps_its_tensors(device: str) -> None:
    """Tensors to load into are overwritten where they lie, one that is not contiguous as well."""
    tensor = values((300, 64), torch.float32)
    container: dict[str, object] = {"flat": tensor, "t": tensor.clone()}
    data = message(items(container, "cpu"), "nf4", 1)
    into = {"flat": torch.zeros(300, 64, device=device), "t": torch.zeros(64, 300, device=device).t()}
    places = {name: tensor.data_ptr() for name, tensor in into.items()}
    assert received(data, MappingSink(tensors(device), into)) is into
    assert {name: tensor.data_ptr() for name, tensor in into.items()} == places
    expected = received(data, MappingSink(TorchTensors(), None))
    assert all(same_bits(tensor.cpu(), cast(torch.Tensor, expected[name])) for name, tensor in into.items())


@on_each_device
@with_each_codec
def test_only_codes_cross(device: str, codec: str) -> None:
    """Neither end asks for the values in the host's memory."""
    container = {"a": values((3001, 512), torch.float32), "b": values((130,), torch.float32)}
    data = message([OnDeviceOnly(item) for item in items(container, device)], codec, 1)
    into = {name: torch.zeros_like(tensor, device=device) for name, tensor in container.items()}
    received(data, DeviceOnlySink(tensors(device), into))
    assert all(0 < float((into[name].cpu() - container[name]).abs().max()) < 0.02 for name in into)


@on_each_device
def test_a_message_that_breaks_leaves_nothing_under_way(device: str) -> None:
    """``abort`` comes back after the device is done with the tensors, which may then be freed."""
    data = message(items(model(), "cpu"), "nf4", 1)
    into = {
        name: torch.zeros_like(t, device=device) for name, t in model().items() if isinstance(t, torch.Tensor)
    }
    sink = MappingSink(tensors(device), {**into, "step": 0})
    checker, parser = MessageChecker(), FrameParser()

    def make_sink(envelope: Envelope) -> Sink:
        return sink

    decoder = ContainerDecoder(checker, make_sink)
    for frame in parser.feed(data[: len(data) // 2]):
        checker.accept(frame)
        decoder.accept(frame)
    decoder.abort()


class Failing(OnDeviceOnly):
    """An item on a device that has no memory left."""

    def __init__(self, item: Item) -> None:
        super().__init__(item)
        self.device_slice = self._fail

    def _fail(self, offset: int, count: int) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nSee documentation")


def test_what_fails_on_a_device_is_told_by_item() -> None:
    """As an error of this library, in one line."""
    sequence = [Failing(item) for item in items({"w": values((4096,), torch.float32)}, "cpu")]
    with pytest.raises(CodecError, match=r"^item 'w': cpu failed: CUDA out of memory\. Tried to [^\n]*$"):
        message(list(sequence), "nf4", 1)


# --- which codec works where ---------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("codec", ["none", "nf4-dq"])
def test_other_codecs_work_on_the_host(device: str, codec: str) -> None:
    """The values are brought to the host slice by slice, as they always were."""
    (item,) = items({"t": values((100,), torch.float32)}, device)
    assert device_encoder(item, bind(Pipeline.parse(codec), item.spec)) is None


def test_stages_work_on_the_host() -> None:
    """Also a stage that leaves nothing to undo, and so does not show in the item's codec."""
    (item,) = items({"t": values((4096,), torch.float32)}, "cpu")
    for text in ("rotate | nf4", "feedback | nf4"):
        context = CodecContext(residuals=MemoryResiduals().begin("k"))
        assert device_encoder(item, bind(Pipeline.parse(text), item.spec, context)) is None


def test_memory_of_the_host_is_encoded_on_the_host() -> None:
    """A plain CPU tensor names no device, and its frames are no pinned memory."""
    (item,) = TorchSerializer().items({"t": values((100,), torch.float32)})
    assert item.device is None and device_encoder(item, bind(Pipeline.parse("nf4"), item.spec)) is None
    assert len(buffer_maker([item])(10)) == 10


def test_a_device_without_kernels_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where bitsandbytes fails or gives wrong values, the host encodes, and the log says why, once."""
    (item,) = items({"t": values((100,), torch.float32)}, "cpu")

    def broken(*arguments: object) -> object:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(lookup, "_try_out", broken)
    lookup._device_codec.cache_clear()  # pyright: ignore[reportPrivateUsage]
    try:
        with caplog.at_level(logging.WARNING, "tensorbus.codecs"):
            for _ in range(2):
                assert device_encoder(item, bind(Pipeline.parse("nf4"), item.spec)) is None
        assert [record.getMessage() for record in caplog.records] == [
            "nf4 is not computed on cpu but on the host: no kernel image is available"
        ]
    finally:
        lookup._device_codec.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_a_buffer_for_a_gpu_is_pinned() -> None:
    """The frame's own buffer is what the device copies to."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    (item,) = items({"t": values((100,), torch.float32)}, "cuda")
    assert torch.frombuffer(buffer_maker([item])(1 << 20), dtype=torch.uint8).is_pinned()


def test_without_tensors_on_a_device_torch_is_not_imported() -> None:
    """Publishing arrays of numpy imports neither torch nor bitsandbytes."""
    program = """
import sys
import numpy as np
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.streaming.container import ContainerEncoder
from tensorbus.streaming.sources import open_source
encoder = ContainerEncoder(open_source({"a": np.ones(1000, np.float32)}), Pipeline.parse("nf4"), {})
assert sum(len(frame) for frame in encoder.frames(lambda: memoryview(bytearray(1 << 20))))
assert not {"torch", "bitsandbytes"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
