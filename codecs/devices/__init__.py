"""Encoding and decoding where a tensor lies: on a GPU, so that only codes cross the bus of the machine.

An `Item` whose values are on a device says so, and a `Sink` may offer memory on one. For the codecs fp16,
bf16, int8, fp4 and nf4, without stages, the work is then done there, by torch and by bitsandbytes' CUDA
kernels, in the payload layout of the quantizers of the same names: what is encoded here decodes there, and
the other way round. Every other codec takes the way over this machine's memory.

Nothing here imports torch before a tensor on a device is in play.
"""

from __future__ import annotations

from .slices import DeviceDecoder, DeviceEncoder, buffer_maker, device_encoder

__all__ = ["DeviceDecoder", "DeviceEncoder", "buffer_maker", "device_encoder"]
