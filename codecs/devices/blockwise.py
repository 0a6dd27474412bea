"""int8, fp4 and nf4 on a device: bitsandbytes' kernels, which have the layout of the quantizers.

What is special about them, as read in its CUDA sources (0.50):

- They work on flat tensors here, so that neither the last dimension nor the tail matters. On CPUs, whose
  kernels of the same names serve the tests, 4-bit decoding goes wrong for a tail that is no whole block; so a
  tail is always made one.
- ``fmaxf`` passes NaN over, so absmax does not show it; the extremes of the values do.
- Every block is multiplied by the reciprocal of its absmax, a tail too, without a floor below it; and the
  kernels are compiled with fast mathematics. So a value that lies on the border between two codes, within
  the rounding of a product, may get the other one than on a CPU. A block of zeros gets code 0 in nf4 and int8
  (on CPUs: that of 0) and decodes to zeros all the same. fp4 codes tiny negatives, and not tiny positives, as
  the zero with the sign bit.
- int8 codes are those of the nearest level, as on the host: a binary search, then one comparison with the
  midpoint, from which a value on it may go to either side. (bitsandbytes on CPUs: 65,536 even steps.)
- Results below the smallest normal float32, 1.2e-38, may become 0.
- Decoding reads, but does not use, the absmax of up to 32 blocks behind the last one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import bitsandbytes.functional
import torch

from tensorbus.errors import NonFiniteValues

from .base import Coded, DeviceCodec

Coding = tuple[torch.Tensor, torch.Tensor]
"""Codes and absmax."""

_DIRECT = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read and write; float64 goes by way of float32, as on the host."""

# Operators that are registered at run time have no types.
_ops = cast(Any, torch.ops.bitsandbytes)


class DeviceBlockwise(DeviceCodec, ABC):
    """Codes, then one float32 absmax for each block.

    Args:
        blocksize: elements.
    """

    bits: ClassVar[int]
    """Of a code."""

    def __init__(self, blocksize: int) -> None:
        self._block = blocksize

    @abstractmethod
    def _quantise(self, values: torch.Tensor) -> Coding:
        """The codes of a flat tensor of a ``_DIRECT`` dtype."""

    @abstractmethod
    def _dequantise(self, coding: Coding, out: torch.Tensor) -> None:
        """Write whole blocks into a flat tensor of a ``_DIRECT`` dtype."""

    def sizes(self, count: int) -> tuple[int, ...]:
        return self._code_bytes(count), 4 * -(-count // self._block)

    def encode(self, values: torch.Tensor) -> Coded:
        direct = values if values.dtype in _DIRECT else values.to(torch.float32)
        extremes = torch.stack(torch.aminmax(direct)).to(torch.float64)
        codes, absmax = self._quantise(direct)
        return Coded((codes.view(-1), absmax.view(torch.uint8)), extremes)

    def clipped(self, values: torch.Tensor, least: float, greatest: float) -> int:
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise NonFiniteValues("the values to be quantised hold NaN or Inf (in float32)")
        return 0

    def decode(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        if out.dtype not in _DIRECT:
            wide = torch.empty_like(out, dtype=torch.float32)
            self.decode(parts, wide)
            out.copy_(wide)
            return
        codes, absmax = parts[0], parts[1].view(torch.float32)
        tail = out.numel() % self._block
        whole = out.numel() - tail
        blocks = whole // self._block
        if whole:
            self._dequantise((codes[: self._code_bytes(whole)], absmax[:blocks]), out[:whole])
        if tail:
            last = codes.new_zeros(self._code_bytes(self._block))
            last[: self._code_bytes(tail)] = codes[self._code_bytes(whole) :]
            block = out.new_empty(self._block)
            self._dequantise((last, absmax[blocks:]), block)
            out[whole:] = block[:tail]

    def _code_bytes(self, count: int) -> int:
        return -(-count * self.bits // 8)


class DeviceFourBit(DeviceBlockwise):
    """fp4 and nf4; an odd count is padded with the code of 0."""

    bits = 4

    def __init__(self, code: Literal["fp4", "nf4"], blocksize: int) -> None:
        super().__init__(blocksize)
        self._code = code

    def _quantise(self, values: torch.Tensor) -> Coding:
        return _ops.quantize_4bit.default(values, self._block, self._code, torch.uint8)

    def _dequantise(self, coding: Coding, out: torch.Tensor) -> None:
        _into(_ops.dequantize_4bit, out, *coding, self._block, self._code, out.shape, out.dtype)


class DeviceDynamic(DeviceBlockwise):
    """int8: the dynamic map."""

    bits = 8

    def __init__(self, blocksize: int) -> None:
        super().__init__(blocksize)
        self._levels = bitsandbytes.functional.create_dynamic_map()
        self._placed: dict[torch.device, torch.Tensor] = {}

    def _quantise(self, values: torch.Tensor) -> Coding:
        return _ops.quantize_blockwise.default(values, self._levels_on(values.device), self._block)

    def _dequantise(self, coding: Coding, out: torch.Tensor) -> None:
        levels = self._levels_on(out.device)
        _into(_ops.dequantize_blockwise, out, *coding, levels, self._block, out.dtype)

    def _levels_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._placed:
            self._placed[device] = self._levels.to(device)
        return self._placed[device]


def _into(operator: Any, out: torch.Tensor, *arguments: object) -> None:
    """Run a dequantisation whose result belongs in ``out``; only on CUDA can it be written there at once."""
    if out.is_cuda:
        operator.out(*arguments, out=out)
    else:
        out.copy_(operator.default(*arguments).view(-1))
