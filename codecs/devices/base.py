"""DeviceCodec: a codec at work on tensors of a device, whose payloads are those of the host's codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Coded:
    """A slice that was encoded, still on the device; its kernels may not have run yet.

    Attributes:
        parts: flat uint8 tensors, which one after the other are the payload.
        extremes: two float64, the least and the greatest value; NaN if any value is.
    """

    parts: tuple[torch.Tensor, ...]
    extremes: torch.Tensor


class DeviceCodec(ABC):
    """Configuration only; usable by several threads. No call waits for the device but ``clipped``."""

    @abstractmethod
    def sizes(self, count: int) -> tuple[int, ...]:
        """Bytes of each part of the payload of ``count`` elements."""

    @abstractmethod
    def encode(self, values: torch.Tensor) -> Coded:
        """Encode a flat float64, float32, float16 or bfloat16 tensor on the current stream of its device."""

    @abstractmethod
    def clipped(self, values: torch.Tensor, least: float, greatest: float) -> int:
        """How many of ``values`` were clipped, given the extremes of them that ``encode`` found.

        Raises:
            NonFiniteValues: there is a NaN or Inf, and so no payload.
        """

    @abstractmethod
    def decode(self, parts: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Decode into the flat tensor ``out``, on the current stream; ``parts`` are as in `Coded`."""
