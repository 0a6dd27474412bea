"""fp16 and bf16 on a device: torch's own rounding, which is to nearest with ties to even."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tensorbus.errors import NonFiniteValues

from .base import Coded, DeviceCodec


class DeviceHalves(DeviceCodec):
    """As the quantizers: values beyond the largest finite number are clipped to it and counted.

    Args:
        half: float16 or bfloat16.
    """

    def __init__(self, half: torch.dtype) -> None:
        self._half = half
        self._largest = torch.finfo(half).max

    def sizes(self, count: int) -> tuple[int, ...]:
        return (2 * count,)

    def encode(self, values: torch.Tensor) -> Coded:
        extremes = torch.stack(torch.aminmax(values)).to(torch.float64)
        within = values.clamp(-self._largest, self._largest)
        # A float64 is rounded to float32 on the way, as on the host.
        codes = within.to(torch.float32).to(self._half)
        return Coded((codes.view(torch.uint8),), extremes)

    def clipped(self, values: torch.Tensor, least: float, greatest: float) -> int:
        if not (math.isfinite(least) and math.isfinite(greatest)):
            bad = values.numel() - int(torch.isfinite(values).sum())
            raise NonFiniteValues(f"{bad} of {values.numel()} values are NaN or Inf")
        if max(greatest, -least) <= self._largest:
            return 0
        return int((values.abs() > self._largest).sum())

    def decode(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        out.copy_(parts[0].view(self._half))
