"""Which codec works where: found from an item's codec and the device on which its values lie."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal, cast

from tensorbus.codecs.base import SliceCodec
from tensorbus.codecs.chain import QuantizerCodec

from .base import DeviceCodec

log = logging.getLogger("tensorbus.codecs")

HALVES = {"fp16": "float16", "bf16": "bfloat16"}
BLOCKWISE = ("int8", "fp4", "nf4")

_UNUSABLE = (ImportError, OSError, AttributeError, RuntimeError)
"""What bitsandbytes raises where it is not installed, or not built for this device."""


def device_codec(codec: SliceCodec, device: str) -> DeviceCodec | None:
    """What does the work of ``codec`` on ``device``, as torch names it; None where it is the host's.

    That is the case for codecs other than those above, and for all that have stages. bitsandbytes is tried
    out on a small tensor first: where that fails, a warning is logged, once.
    """
    if not isinstance(codec, QuantizerCodec):
        return None
    config = codec.config()
    return _device_codec(cast(str, config["name"]), cast("int | None", config.get("blocksize")), device)


@lru_cache(maxsize=64)
def _device_codec(name: str, blocksize: int | None, device: str) -> DeviceCodec | None:
    if name in HALVES:
        import torch

        from .halves import DeviceHalves

        return DeviceHalves(cast(torch.dtype, getattr(torch, HALVES[name])))
    if name not in BLOCKWISE or blocksize is None:
        return None
    try:
        codec = _blockwise(name, blocksize)
        _try_out(codec, blocksize, device)
    except _UNUSABLE as error:
        reason = str(error).partition("\n")[0]
        log.warning("%s is not computed on %s but on the host: %s", name, device, reason)
        return None
    return codec


def _blockwise(name: str, blocksize: int) -> DeviceCodec:
    from .blockwise import DeviceDynamic, DeviceFourBit

    if name == "int8":
        return DeviceDynamic(blocksize)
    return DeviceFourBit(cast(Literal["fp4", "nf4"], name), blocksize)


def _try_out(codec: DeviceCodec, blocksize: int, device: str) -> None:
    """Encode and decode a block and a half.

    Raises:
        ImportError, OSError, AttributeError, RuntimeError: that does not work on ``device``.
    """
    import torch

    from .lanes import own_lane

    with own_lane(torch.device(device)).encoding():
        values = torch.linspace(-1, 1, blocksize + blocksize // 2 + 1, device=device)
        decoded = torch.empty_like(values)
        codec.decode(codec.encode(values).parts, decoded)
        error = float((decoded - values).abs().max())
    # The coarsest code, fp4, has levels 1/3 apart.
    if not error < 0.2:
        raise RuntimeError("bitsandbytes gives back other values than it got")
