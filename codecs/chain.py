"""A pipeline bound to one item: the SliceCodec that its frames are made with, and that they are read with.

Strategy. A chain is built from its end: the quantizer, bound to the dtype that reaches it, then each stage
before it. The publisher builds it from its pipeline, leaving out what is not for this item; the receiver from
the item's codec in the manifest, which names just the stages that are to be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import cast

import numpy as np

from tensorbus.errors import InvalidSpecification, ManifestMismatch, MissingBase

from . import registry
from .base import Accumulator, Encoded, Quantizer, SliceCodec, Stage
from .context import NO_CONTEXT, CodecContext
from .dtypes import DType
from .floats import as_bytes
from .item import ItemSpec
from .pipeline import MAX_STAGES, Pipeline, check_order
from .scratch import pieces

__all__ = ["QuantizerCodec", "SparseCodec", "bind", "check_base", "codec_of"]

SMALLEST_VARIABLE = 1024
"""Bytes; codecs whose output varies write tables of a few hundred bytes, and are not for smaller items."""


class QuantizerCodec(SliceCodec):
    """A quantizer bound to a dtype; the end of every chain, and all of most."""

    def __init__(self, quantizer: Quantizer, dtype: DType) -> None:
        self.quantizer = quantizer
        self.dtype = dtype
        self.fixed_size = quantizer.fixed_size
        self.blocksize = quantizer.blocksize
        self.grain = quantizer.grain

    @property
    def copies(self) -> bool:
        """Whether the payload is the original bytes."""
        return self.quantizer.name == "none"

    def config(self) -> dict[str, object]:
        return self.quantizer.config()

    def encoded_size(self, count: int) -> int:
        return self.quantizer.encoded_size(count, self.dtype)

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        return self.quantizer.encode(source, self.dtype, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        self.quantizer.decode(payload, self.dtype, out)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        self.quantizer.accumulate(payload, self.dtype, accumulator, weight)

    def cut(self, payload: memoryview, count: int, start: int, stop: int) -> memoryview:
        return self.quantizer.cut(payload, self.dtype, count, start, stop)


class SparseCodec(SliceCodec):
    """The quantizer behind a stage for which zeros mean the base: slices of nothing but zeros take no bytes.

    Its values are float32.
    """

    fixed_size = False

    def __init__(self, inner: SliceCodec) -> None:
        self.inner = inner
        self.dtype = inner.dtype
        self.blocksize = inner.blocksize
        self.grain = inner.grain

    def config(self) -> dict[str, object]:
        return self.inner.config()

    def encoded_size(self, count: int) -> int:
        return self.inner.encoded_size(count)

    def encode(self, source: memoryview, offset: int, out: memoryview) -> Encoded:
        values = np.frombuffer(source, np.float32)
        # Piece by piece: where something changed, the first piece mostly shows it.
        if not any(values[start:stop].any() for start, stop in pieces(values.size)):
            return Encoded(0)
        return self.inner.encode(source, offset, out)

    def decode(self, payload: memoryview, offset: int, out: memoryview) -> None:
        if payload:
            self.inner.decode(payload, offset, out)
        else:
            as_bytes(out).fill(0)

    def accumulate(self, payload: memoryview, offset: int, accumulator: Accumulator, weight: float) -> None:
        if payload:
            self.inner.accumulate(payload, offset, accumulator, weight)

    def cut(self, payload: memoryview, count: int, start: int, stop: int) -> memoryview:
        return self.inner.cut(payload, count, start, stop) if payload else payload


def bind(pipeline: Pipeline, spec: ItemSpec, context: CodecContext = NO_CONTEXT) -> SliceCodec:
    """The codec that the publisher encodes an item with.

    Stages that are not for the item are left out: those that do not accept its dtype, and those against a
    base which does not hold it. It is sent exactly where it is no tensor or is to be kept, where the
    quantizer does not accept it, and where it would not get smaller. Private stages are never left out: what
    would be sent exactly is then sent as they make it, unquantised.

    Args:
        pipeline: resolved (`Pipeline.resolved`).
        spec: the item; its ``codec`` is not looked at.
        context: as for ``resolved``.

    Raises:
        InvalidSpecification, MissingBase: a private stage cannot work on the item.
    """
    exact = QuantizerCodec(registry.quantizer("none"), spec.dtype)
    private = any(stage.private for stage in pipeline.stages)
    if private and spec.view is None:
        _check_private(pipeline.stages, spec, context)
    if spec.kind != "tensor":
        return exact
    stages = _for_item(pipeline.stages, spec, context)
    kept = any(fnmatchcase(spec.name, pattern) for pattern in pipeline.keep)
    if not kept and pipeline.quantizer.accepts(_behind(stages, spec.dtype)):
        chain = _chain(stages, pipeline.quantizer, spec, context)
        if _pays(chain, pipeline.quantizer, spec):
            return chain
    harmless = [stage for stage in stages if stage.exact or stage.private or (private and stage.against_base)]
    return _chain(harmless, exact.quantizer, spec, context) if harmless else exact


def codec_of(spec: ItemSpec, context: CodecContext = NO_CONTEXT) -> SliceCodec:
    """The codec that the receiver decodes an item with, as ``spec.codec`` describes it.

    A base need not be at hand: it is looked up when values are decoded. See also `check_base`.

    Raises:
        UnknownCodec: a stage or the quantizer is not installed.
        InvalidSpecification: the description is malformed, or makes no sense.
        ManifestMismatch: it is not for items of this dtype.
    """
    config = dict(spec.codec)
    stages = [registry.stage(entry) for entry in _entries(config.pop("stages", None))]
    quantizer = registry.quantizer(config)
    check_order(stages, quantizer)
    dtype = spec.dtype
    for stage in stages:
        if not stage.undone:
            raise InvalidSpecification(f"stage {stage.name} leaves nothing to undo; an item does not name it")
        if not stage.accepts(dtype):
            raise ManifestMismatch(f"stage {stage.name} is not for {dtype}")
        dtype = stage.inner_dtype(dtype)
    if not quantizer.accepts(dtype):
        raise ManifestMismatch(f"codec {quantizer.name} is not for {dtype}")
    chain = _chain(stages, quantizer, spec, context)
    if chain.base is None and any(stage.against_base for stage in stages):
        raise InvalidSpecification(f"stage {stages[0].name} does not say which base")
    return chain


def check_base(codec: SliceCodec, spec: ItemSpec, context: CodecContext) -> None:
    """Refuse an item now that could not be decoded later.

    Raises:
        MissingBase: the context lacks the base of the item, or the base lacks the item.
    """
    if codec.base is not None and spec.view is None:
        context.require(codec.base, spec)


def _for_item(stages: Sequence[Stage], spec: ItemSpec, context: CodecContext) -> list[Stage]:
    used: list[Stage] = []
    for stage in stages:
        if stage.accepts(_behind(used, spec.dtype)) and stage.fits(spec, context):
            used.append(stage)
    return used


def _check_private(stages: Sequence[Stage], spec: ItemSpec, context: CodecContext) -> None:
    """Refuse an item that would get past a private stage."""
    names = " | ".join(stage.name for stage in stages if stage.private)
    if spec.kind != "tensor" or not all(stage.accepts(spec.dtype) for stage in stages[:1]):
        what = spec.dtype if spec.kind == "tensor" else f"a {spec.kind}"
        raise InvalidSpecification(f"{names} cannot work on {spec.name!r}, {what}; leave it out with skip")
    if not all(stage.fits(spec, context) for stage in stages):
        raise MissingBase(f"{spec.name!r} is not in the base, so {names} cannot bound its change")


def _behind(stages: Sequence[Stage], dtype: DType) -> DType:
    """What values of ``dtype`` are behind the stages."""
    for stage in stages:
        dtype = stage.inner_dtype(dtype)
    return dtype


def _chain(
    stages: Sequence[Stage], quantizer: Quantizer, spec: ItemSpec, context: CodecContext
) -> SliceCodec:
    chain: SliceCodec = QuantizerCodec(quantizer, _behind(stages, spec.dtype))
    if any(stage.zero_is_base for stage in stages):
        chain = SparseCodec(chain)
    for at in reversed(range(len(stages))):
        before = replace(spec, dtype=_behind(stages[:at], spec.dtype))
        chain = stages[at].wrap(chain, before, context)
    return chain


def _pays(chain: SliceCodec, quantizer: Quantizer, spec: ItemSpec) -> bool:
    """Whether the chain makes the item smaller, or may do so by leaving out slices and loses no bit."""
    size = chain.encoded_size(spec.count)
    if not quantizer.fixed_size:
        # Only the values tell how small they get; where stages make them wider, it is to be doubted.
        return spec.nbytes >= SMALLEST_VARIABLE and size <= spec.nbytes + spec.nbytes // 8
    return size < spec.nbytes or (size == spec.nbytes > 0 and chain.base is not None and quantizer.exact)


def _entries(listed: object) -> list[Mapping[str, object]]:
    if listed is None:
        return []
    if not isinstance(listed, list) or not 1 <= len(cast("list[object]", listed)) <= MAX_STAGES:
        raise InvalidSpecification(f"the stages of an item's codec are a list of 1 to {MAX_STAGES} objects")
    entries = cast("list[object]", listed)
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise InvalidSpecification(f"a stage of an item's codec is an object, not {entry!r:.80}")
    return cast("list[Mapping[str, object]]", entries)
