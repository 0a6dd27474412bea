"""Lane: the way between a device and this machine's memory.

Strategy on CUDA. bitsandbytes launches its quantisation on the device's default stream, whatever the current
one is; so all encoding is done there. The copy to the host follows on a stream of its own: while one thread
waits for its copy, another one has launched the kernels of the next slice, and the frame before is on its way
to the broker. Decoding takes a stream of its own from the copy to the last kernel, and two pinned buffers by
turns: one is filled while the other is being copied.

A copy is asynchronous only to and from pinned memory. Frame buffers made by ``pinned`` are; into any other
memory the driver copies too, only slower.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import torch

from .base import Coded

Bytes = npt.NDArray[np.uint8]

_MARGIN = 512
"""Bytes behind each part on the device that a kernel may read: see `blockwise`."""


def pinned(nbytes: int) -> memoryview:
    """A new buffer in memory that stays where it is, so that a device copies to and from it directly."""
    return _pinned(nbytes).data


def _pinned(nbytes: int) -> Bytes:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


class Lane:
    """For one thread at a time. This one serves any device, and waits for each copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def encoding(self) -> AbstractContextManager[object]:
        """Within it, the current stream is the one to encode on."""
        return nullcontext()

    def fetch(self, coded: Coded, out: Bytes) -> tuple[float, float]:
        """Wait for what was encoded, and write its payload to ``out``; the extremes of the values."""
        at = 0
        for part in coded.parts:
            _tensor(out[at : at + part.numel()]).copy_(part)
            at += part.numel()
        return float(coded.extremes[0]), float(coded.extremes[1])

    @contextmanager
    def decoding(self, parts: Sequence[Bytes]) -> Generator[list[torch.Tensor]]:
        """``parts`` on the device; within it, the current stream is the one to decode on.

        What they lie in may be used again as soon as this returns.
        """
        yield [_tensor(part.copy()).to(self._device) for part in parts]

    def settle(self) -> None:
        """Wait until everything that was decoded is in its place."""


class CudaLane(Lane):
    """A lane with streams and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._own = torch.cuda.Stream(device)
        self._fetched = torch.cuda.Event(blocking=True)
        self._extremes = torch.empty(2, dtype=torch.float64, pin_memory=True)
        self._stages = [_Stage(), _Stage()]

    @contextmanager
    def encoding(self) -> Generator[None]:
        default = torch.cuda.default_stream(self._device)
        # Nobody but a caller in the midst of work on a stream of its own has another current one.
        default.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(default):
            yield

    def fetch(self, coded: Coded, out: Bytes) -> tuple[float, float]:
        self._own.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._own):
            at = 0
            for part in coded.parts:
                _tensor(out[at : at + part.numel()]).copy_(part, non_blocking=True)
                at += part.numel()
            self._extremes.copy_(coded.extremes, non_blocking=True)
            self._fetched.record(self._own)
        # Releases the GIL. Until it returns, `coded` keeps the memory on the device from being used again.
        self._fetched.synchronize()
        return float(self._extremes[0]), float(self._extremes[1])

    @contextmanager
    def decoding(self, parts: Sequence[Bytes]) -> Generator[list[torch.Tensor]]:
        stage = self._stages[0]
        self._stages.reverse()
        staged = stage.fill(parts)
        self._own.wait_stream(torch.cuda.default_stream(self._device))
        self._own.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._own):
            # Made on this stream: their memory is used again only behind the kernels that read them.
            on_device = [self._room(part.size) for part in parts]
            for room, part in zip(on_device, staged, strict=True):
                room.copy_(part, non_blocking=True)
            stage.copied.record(self._own)
            yield on_device

    def settle(self) -> None:
        self._own.synchronize()

    def _room(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes + _MARGIN, dtype=torch.uint8, device=self._device)[:nbytes]


class _Stage:
    """A pinned buffer on the way to a device.

    Attributes:
        copied: happens when it may be filled again.
    """

    def __init__(self) -> None:
        self.copied = torch.cuda.Event(blocking=True)
        self._buffer = np.empty(0, np.uint8)

    def fill(self, parts: Sequence[Bytes]) -> list[torch.Tensor]:
        """``parts``, one after the other in the buffer, as soon as what was there before has left."""
        self.copied.synchronize()
        total = sum(part.size for part in parts)
        if self._buffer.size < total:
            self._buffer = _pinned(total)
        filled: list[torch.Tensor] = []
        at = 0
        for part in parts:
            room = self._buffer[at : at + part.size]
            np.copyto(room, part)
            filled.append(_tensor(room))
            at += part.size
        return filled


class _Lanes(threading.local):
    def __init__(self) -> None:
        self.by_device: dict[torch.device, Lane] = {}


_lanes = _Lanes()


def new_lane(device: torch.device) -> Lane:
    """A new lane to ``device``."""
    return CudaLane(device) if device.type == "cuda" else Lane(device)


def own_lane(device: torch.device) -> Lane:
    """The lane to ``device`` that this thread keeps."""
    if device not in _lanes.by_device:
        _lanes.by_device[device] = new_lane(device)
    return _lanes.by_device[device]


def _tensor(buffer: Bytes) -> torch.Tensor:
    return torch.frombuffer(buffer.data, dtype=torch.uint8)
