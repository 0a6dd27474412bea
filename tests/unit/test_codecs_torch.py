"""Promises of the torch serializer: whatever a state_dict holds arrives as it was, without conversion."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import ItemSpec, View
from tensorbus.codecs.registry import serializer, serializer_for
from tensorbus.errors import (
    InvalidName,
    ManifestMismatch,
    UnsupportedContainer,
    UnsupportedDtype,
)

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Torch calls complex32 and others experimental; only their bits matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def carry(container: Any, into: Any = None, kind: str | None = None, step: int = 1000) -> Any:
    """The container taken apart and put together again, ``step`` elements at a time, without frames."""
    source = serializer_for(container)
    items = source.items(container)
    sink = serializer(kind or source.name).sink(into)
    for item in items:
        sink.begin(item.spec)
    for item in items:
        for offset in range(0, 0 if item.spec.view else item.spec.count, step):
            count = min(step, item.spec.count - offset)
            buffer = sink.buffer(item.spec, offset, count)
            if offset % 2:
                item.read_into(offset, count, buffer)
            else:
                buffer[:] = item.read(offset, count)
            sink.commit(item.spec, offset, count)
    return sink.finish()


def bits(tensor: Any) -> bytes:
    """The elements' bytes in C order."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    if plain.element_size() < 16 and not plain.is_complex():
        plain = plain.view(
            {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
        )
    return plain.contiguous().numpy().tobytes() if plain.dtype != torch.complex32 else _complex32(plain)


def _complex32(plain: Any) -> bytes:
    return torch.view_as_real(plain).contiguous().view(torch.int16).numpy().tobytes()


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Same names in the same order, shapes, dtypes and bits."""
    assert list(before) == list(after)
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert (value.shape, value.dtype) == (after[name].shape, after[name].dtype), name
            assert bits(value) == bits(after[name]), name
        else:
            assert (type(value), value) == (type(after[name]), after[name]), name


def random_tensor(dtype: str, *shape: int) -> Any:
    """Random bits as elements of ``dtype``."""
    kind, size = getattr(torch, dtype), DTYPES[dtype].itemsize
    high = 2 if dtype == "bool" else 256
    raw = torch.randint(0, high, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)
    return raw.view(kind)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_every_dtype_keeps_its_bits(dtype: str, step: int) -> None:
    """Each dtype arrives bit for bit: contiguous, strided, 0-d and empty, NaN payloads and all."""
    whole = random_tensor(dtype, 6, 10)
    container = {
        "whole": whole,
        "columns": random_tensor(dtype, 6, 10)[:, 1::2],
        "transposed": random_tensor(dtype, 3, 4).T,
        "element": random_tensor(dtype, 1)[0],
        "empty": random_tensor(dtype, 4, 0, 3),
    }
    assert_same(container, carry(container, step=step))


@pytest.mark.parametrize("step", [1, 5, 64, 10_000])
def test_layouts_are_read_in_c_order(step: int) -> None:
    """Permuted, stepped, expanded, conjugated and negated views arrive with the values that they show."""
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    lazy = torch.randn(4, 5, dtype=torch.complex64)
    container = {
        "permuted": (base + 1).permute(3, 1, 0, 2),
        "stepped": (base + 2)[:, ::2, 1:, ::3],
        "expanded": torch.arange(3.0).reshape(3, 1).expand(4, 3, 6),
        "channels_last": (base + 3).to(memory_format=torch.channels_last),
        "conjugate": lazy.clone().conj().T,
        "negative": lazy.clone().conj().imag,
        "conjugate128": torch.randn(7, dtype=torch.complex128).conj(),
    }
    assert_same(container, carry(container, step=step))


def test_parameters_scalars_and_bytes_arrive() -> None:
    """Parameters that require gradients, None, bool, int, float, text and bytes are all entries."""
    container = {
        "weight": torch.nn.Parameter(torch.randn(5, 3)),
        "none": None,
        "flag": True,
        "steps": -(2**40),
        "rate": 0.1,
        "name": "größe",
        "blob": bytes(range(256)),
        "no bytes": b"",
    }
    assert_same(container, carry(container, step=9))


def test_module_is_its_state_dict() -> None:
    """A Module is recognised and sent as its state_dict, buffers included."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    assert_same(dict(module.state_dict()), carry(module))


def test_contiguous_tensors_are_read_where_they_lie() -> None:
    """No copy: what read() gives is the tensor's own memory."""
    tensor = torch.zeros(3, 4, dtype=torch.bfloat16)[1:]
    (item,) = serializer_for({"t": tensor}).items({"t": tensor})
    assert item.stable
    view = item.read(2, 4)
    tensor[0, 2] = 1
    assert bytes(view[:2]) == b"\x80\x3f"


def test_shared_tensors_are_sent_once_and_arrive_shared() -> None:
    """A tied head, a slice and a transposed view have no values of their own, and share storage again."""
    embedding = torch.randn(8, 6)
    container: OrderedDict[str, Any] = OrderedDict(head=embedding.T, embedding=embedding)
    container.update(tied=embedding, row=embedding[2, 1:5:2])
    items = {item.spec.name: item for item in serializer_for(container).items(container)}
    assert [name for name, item in items.items() if item.spec.view is None] == ["embedding"]
    assert items["row"].spec.view == View("embedding", 13, (2,))
    after = carry(container)
    assert_same(dict(container), after)
    assert len({tensor.untyped_storage().data_ptr() for tensor in after.values()}) == 1


def test_same_strided_tensor_under_two_names_is_sent_once() -> None:
    """Twins that nothing contiguous covers are still one tensor."""
    twin = torch.randn(6, 8)[:, ::2]
    after = carry({"a": twin, "b": twin})
    assert_same({"a": twin, "b": twin}, after)
    assert after["a"].data_ptr() == after["b"].data_ptr()


def test_other_dtype_over_the_same_storage_is_sent_alone() -> None:
    """Sharing is only for tensors of one dtype."""
    tensor = torch.randn(4)
    container = {"a": tensor, "b": tensor.view(torch.int32)}
    assert [item.spec.view for item in serializer_for(container).items(container)] == [None, None]
    assert_same(container, carry(container))


def jagged(parts: list[Any]) -> object:
    """A nested tensor of the newer layout, which is a tensor subclass."""
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), UnsupportedContainer),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), UnsupportedContainer),
    "meta": (lambda: torch.empty(3, device="meta"), UnsupportedContainer),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        UnsupportedContainer,
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        UnsupportedContainer,
    ),
    "lazy": (lambda: torch.nn.LazyLinear(2).weight, UnsupportedContainer),
    "list": (lambda: [1, 2], UnsupportedContainer),
    "dict": (lambda: {"nested": torch.ones(2)}, UnsupportedContainer),
    "array": (lambda: np.ones(2), UnsupportedContainer),
    "huge integer": (lambda: 2**70, UnsupportedContainer),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_sent_is_refused_by_name(case: str) -> None:
    """Sparse, quantized, nested and meta tensors, and other objects, are refused; the error names them."""
    make, error = REFUSED[case]
    container = {"fine": torch.ones(2), "the bad one": make()}
    with pytest.raises(error, match="the bad one"):
        serializer_for(container).items(container)


@pytest.mark.parametrize(
    "name", ["", "x" * 10_000, "a\0b", "line\nbreak", "../../etc/passwd", "a/../b", "..", 7]
)
def test_bad_names_are_refused(name: object) -> None:
    """Names that are empty, huge, not text, or that hold control characters or path tricks never leave."""
    container = {name: torch.ones(2)}
    with pytest.raises(InvalidName):
        serializer_for(container).items(container)


def test_into_a_module_writes_in_place() -> None:
    """Loading into a Module overwrites its own tensors, of whatever layout, and returns it."""
    source = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    target = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    target[0].weight.data = torch.zeros(6, 4).T
    addresses = [tensor.data_ptr() for tensor in target.state_dict().values()]
    assert carry(source, into=target, step=5) is target
    assert_same(dict(source.state_dict()), dict(target.state_dict()))
    assert [tensor.data_ptr() for tensor in target.state_dict().values()] == addresses


def test_into_untied_tensors_copies_a_view() -> None:
    """Where the publisher's tensors share storage and the receiver's do not, both receive the values."""
    embedding = torch.randn(5, 4)
    message = {"embedding": embedding, "head": embedding.T, "same": embedding}
    for owner in (torch.zeros(5, 4), torch.zeros(4, 5).T, torch.zeros(5, 8)[:, ::2]):
        into = {"embedding": owner, "head": torch.zeros(4, 5), "same": torch.zeros(4, 5).T}
        assert carry(message, into=into, step=3) is into
        assert_same(message, into)


def test_into_a_strided_owner_copies_a_view() -> None:
    """A view is taken of the owner's elements, not of the memory between them."""
    values = torch.randn(6)
    into = {"owner": torch.zeros(12)[::2], "part": torch.zeros(3)}
    assert_same(
        {"owner": values, "part": values[1:4]}, carry({"owner": values, "part": values[1:4]}, into=into)
    )


def test_into_a_mapping_replaces_scalars() -> None:
    """Scalars have no memory to write to: the mapping gets the new value."""
    into: dict[str, Any] = {"weight": torch.zeros(2), "step": 1}
    carry({"weight": torch.ones(2), "step": 7}, into=into)
    assert into["step"] == 7
    assert into["weight"].tolist() == [1, 1]


MISMATCHES: dict[str, dict[str, object]] = {
    "shape": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
    "dtype": {"weight": torch.zeros(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2)},
    "lacks it": {"bias": torch.zeros(2)},
    "no tensor": {"weight": 5, "bias": torch.zeros(2)},
    "expanded": {"weight": torch.zeros(1).expand(2, 3), "bias": torch.zeros(2)},
}


@pytest.mark.parametrize("case", list(MISMATCHES))
def test_into_another_layout_is_refused_by_name(case: str) -> None:
    """An item that has no place of its shape and dtype is refused, and named."""
    sink = serializer("torch").sink(MISMATCHES[case])
    with pytest.raises(ManifestMismatch, match="weight"):
        sink.begin(ItemSpec("weight", DTYPES["float32"], (2, 3)))


def test_into_more_than_the_message_is_refused_by_name() -> None:
    """A message that fills only a part of the container is no success."""
    with pytest.raises(ManifestMismatch, match="'left'"):
        carry({"weight": torch.ones(2)}, into={"weight": torch.zeros(2), "left": torch.zeros(1)})


def test_torch_message_loads_as_numpy() -> None:
    """Arrays of the dtypes that numpy has, views included; what it lacks is refused by name."""
    tensor = torch.arange(6.0).reshape(2, 3)
    after = carry(
        {"a": tensor, "t": tensor.T, "i": torch.tensor(3, dtype=torch.int16), "s": "x"}, kind="numpy"
    )
    assert after["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert np.shares_memory(after["a"], after["t"])
    assert (after["i"].dtype, after["i"].shape, after["s"]) == (np.int16, (), "x")
    with pytest.raises(UnsupportedDtype, match="'half'"):
        carry({"half": torch.empty(2, dtype=torch.float4_e2m1fn_x2)}, kind="numpy")


def test_numpy_message_loads_as_torch() -> None:
    """Tensors of the arrays' dtypes."""
    after = carry({"a": np.arange(6, dtype=">u2").reshape(2, 3), "s": np.float64(2)}, kind="torch")
    assert (after["a"].dtype, after["a"].tolist()) == (torch.uint16, [[0, 1, 2], [3, 4, 5]])
    assert after["s"].item() == 2.0
