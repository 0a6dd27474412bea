"""StagedCodec: what the SliceCodecs of all stages have in common."""

from __future__ import annotations

from typing import cast

from .base import SliceCodec, Stage
from .dtypes import DType


class StagedCodec(SliceCodec):
    """A stage before another SliceCodec, which takes as many bytes and is cut at the same multiples.

    Payloads can be cut where ``inner``'s can, if the stage sets ``grain``: only if it treats elements alike
    wherever in a slice they are.

    Args:
        stage: as the manifest shall have it.
        inner: what stands behind it.
        dtype: of the values that come to the stage.
    """

    def __init__(self, stage: Stage, inner: SliceCodec, dtype: DType) -> None:
        self.stage = stage
        self.inner = inner
        self.dtype = dtype
        self.fixed_size = inner.fixed_size
        self.blocksize = inner.blocksize
        self.base = inner.base

    def config(self) -> dict[str, object]:
        config = self.inner.config()
        if not self.stage.undone:
            return config
        behind = cast("list[object]", config.pop("stages", []))
        return {**config, "stages": [self.stage.config(), *behind]}

    def encoded_size(self, count: int) -> int:
        return self.inner.encoded_size(count)

    def cut(self, payload: memoryview, count: int, start: int, stop: int) -> memoryview:
        return self.inner.cut(payload, count, start, stop) if payload else payload
