"""``torch``: a Module or a state_dict.

torch is imported when a container of torch comes up, never before. Values are handled as bits: a tensor's
storage is seen as bytes, so that every dtype, whatever torch can compute with it, passes unchanged.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeGuard, cast

from tensorbus.codecs.base import Serializer, Sink
from tensorbus.codecs.dtypes import DTYPES
from tensorbus.codecs.item import Item, ItemSpec, View
from tensorbus.codecs.ranges import blocks
from tensorbus.codecs.sharing import Extent
from tensorbus.errors import ManifestMismatch, UnsupportedContainer, UnsupportedDtype

from .mapping import MappingSink, items_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


class TorchSerializer(Serializer):
    """Modules and mappings of tensors: every dtype, shape, stride and device; Python scalars and bytes.

    Tensors arrive on the CPU, or in place where those to load into are. Sparse, quantized and nested tensors,
    and those without values (``meta``), are refused.
    """

    name = "torch"

    @classmethod
    def recognises(cls, container: object) -> bool:
        torch = sys.modules.get("torch")
        if torch is None:
            return False
        if isinstance(container, Mapping):
            values = cast(Mapping[object, object], container).values()
            return any(isinstance(value, torch.Tensor) for value in values)
        return isinstance(container, torch.nn.Module)

    def items(self, container: object) -> Sequence[Item]:
        return items_of(cast(Mapping[object, object], _state_dict(container)), TorchTensors())

    def sink(self, into: object | None = None) -> Sink:
        if into is None:
            return MappingSink(TorchTensors(), None)
        return MappingSink(TorchTensors(), _state_dict(into), result=into)


class TorchTensors:
    """``Arrays`` for torch."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._no_dispatch: object = getattr(torch.Tensor, "__torch_dispatch__", None)
        self._bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

    def owns(self, value: object) -> TypeGuard[torch.Tensor]:
        return isinstance(value, self._torch.Tensor)

    def spec(self, name: str, array: torch.Tensor) -> ItemSpec:
        self._check_kind(name, array)
        known = str(array.dtype).removeprefix("torch.")
        if known not in DTYPES:
            raise UnsupportedDtype(f"{name!r} has the dtype {array.dtype}, which cannot be sent")
        return ItemSpec(name, DTYPES[known], tuple(array.shape))

    def _check_kind(self, name: str, array: torch.Tensor) -> None:
        torch = self._torch
        if torch.nn.parameter.is_lazy(array):
            raise UnsupportedContainer(f"{name!r} is not initialised yet; run the lazy module once")
        if array.layout != torch.strided or array.is_nested:
            raise UnsupportedContainer(
                f"{name!r} is a {array.layout} or nested tensor; convert it to a dense one"
            )
        if array.is_quantized:
            raise UnsupportedContainer(f"{name!r} is a torch-quantized tensor; convert it with dequantize()")
        if array.is_meta:
            raise UnsupportedContainer(f"{name!r} is a meta tensor, which has no values")
        if getattr(type(array), "__torch_dispatch__", None) is not self._no_dispatch:
            raise UnsupportedContainer(
                f"{name!r} is a {type(array).__qualname__}, a tensor subclass that may have no storage "
                "of its own; convert it to a plain tensor first"
            )

    def extent(self, spec: ItemSpec, array: torch.Tensor) -> Extent | None:
        if array.is_conj() or array.is_neg():
            return None
        memory = (str(array.dtype), str(array.device))
        strides = tuple(array.stride())
        return Extent(spec.name, memory, array.data_ptr(), array.element_size(), spec.shape, strides)

    def direct(self, array: torch.Tensor) -> memoryview | None:
        if array.device.type != "cpu" or not array.is_contiguous() or array.is_conj() or array.is_neg():
            return None
        storage = array.untyped_storage()
        nbytes = array.numel() * array.element_size()
        flat = self._torch.empty(0, dtype=self._torch.uint8)
        flat.set_(storage, array.storage_offset() * array.element_size(), (nbytes,), (1,))
        return cast("npt.NDArray[np.uint8]", flat.numpy()).data

    def gather(self, array: torch.Tensor, offset: int, out: memoryview) -> None:
        source = self._plain(array)
        self._gather(source, offset, self._over(out, source.dtype))

    def _gather(self, source: torch.Tensor, offset: int, target: torch.Tensor) -> None:
        done = 0
        for block in blocks(source.shape, offset, target.numel()):
            target[done : done + block.count].view(block.shape).copy_(source[block.index])
            done += block.count

    def scatter(self, array: torch.Tensor, offset: int, data: memoryview) -> None:
        target = self._plain(array)
        source = self._over(data, target.dtype)
        done = 0
        for block in blocks(target.shape, offset, source.numel()):
            target[block.index].copy_(source[done : done + block.count].view(block.shape))
            done += block.count

    def device(self, array: torch.Tensor) -> str | None:
        return str(array.device) if array.is_cuda and not (array.is_conj() or array.is_neg()) else None

    def on_device(
        self, array: torch.Tensor, offset: int, count: int, *, in_place: bool
    ) -> torch.Tensor | None:
        if array.is_contiguous():
            return array.detach().view(-1)[offset : offset + count]
        if in_place:
            return None
        source = self._plain(array)
        flat = self._torch.empty(count, dtype=source.dtype, device=source.device)
        self._gather(source, offset, flat)
        return flat.view(array.dtype)

    def empty(self, spec: ItemSpec) -> torch.Tensor:
        dtype = getattr(self._torch, spec.dtype.name, None)
        if not isinstance(dtype, self._torch.dtype):
            raise UnsupportedDtype(f"{spec.name!r} is {spec.dtype}, which this version of torch lacks")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # complex32 warns of being experimental; only its bits are moved
            return self._torch.empty(spec.shape, dtype=dtype)

    def strided(self, owner: torch.Tensor, spec: ItemSpec, view: View) -> torch.Tensor:
        flat = owner.detach().contiguous().view(-1)
        return flat.as_strided(spec.shape, view.strides, flat.storage_offset() + view.offset)

    def assign(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._plain(target).copy_(self._plain(source))

    def check_writable(self, name: str, array: torch.Tensor) -> None:
        if any(stride == 0 < extent - 1 for extent, stride in zip(array.shape, array.stride(), strict=True)):
            raise ManifestMismatch(f"{name!r} cannot be loaded into: it is expanded, many elements are one")

    def _plain(self, array: torch.Tensor) -> torch.Tensor:
        """The tensor as integers of the same size where that is possible, so that copies keep every bit."""
        array = array.detach()
        bits = self._bits.get(array.element_size())
        if bits is None or array.is_conj() or array.is_neg():
            return array
        return array.view(bits)

    def _over(self, buffer: memoryview, dtype: torch.dtype) -> torch.Tensor:
        return self._torch.frombuffer(buffer, dtype=dtype)


def _state_dict(container: object) -> Mapping[str, object]:
    if isinstance(container, Mapping):
        return cast(Mapping[str, object], container)
    import torch

    if isinstance(container, torch.nn.Module):
        # Read-only, since a value written into this dict would not reach the Module.
        return MappingProxyType(container.state_dict())
    raise UnsupportedContainer(
        f"torch containers are Modules and state_dicts, not {type(container).__qualname__}"
    )
