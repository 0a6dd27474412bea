"""Tensorbus codecs inside NVIDIA FLARE: a pair of filters for model weights and their differences.

In a job's configuration, at the server (and the same at the clients, with the two lists changed over):

    "task_data_filters": [{"tasks": ["train"], "filters": [
        {"path": "tensorbus.integrations.nvflare.TensorbusEncoder", "args": {"codec": "bf16"}}]}],
    "task_result_filters": [{"tasks": ["train"], "filters": [
        {"path": "tensorbus.integrations.nvflare.TensorbusDecoder", "args": {}}]}]

Strategy. An encoded DXO is of the kind and has the names of the plain one; in place of values it has arrays
of bytes, which FLARE serialises and streams as it does any array. All of them, in their order, are the frames
of one Tensorbus message, so the decoder needs to be told nothing, and damage is found.
"""

# nvflare is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tensorbus.codecs import registry
from tensorbus.errors import InvalidRequest, ManifestMismatch, UnsupportedContainer

from .packages import missing

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
except ModuleNotFoundError as error:
    raise missing("nvflare", error) from error

from .frames import Parts, Reader, pipeline_of

__all__ = ["TensorbusDecoder", "TensorbusEncoder"]

ALGORITHM = "tensorbus"
"""What the meta property PROCESSED_ALGORITHM of an encoded DXO says."""

KINDS: list[str] = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]


class TensorbusEncoder(DXOFilter):
    """Encodes the weights of a DXO, arrays of numpy or tensors of torch; for task data or task results.

    What was encoded before, for another client, passes unchanged; the DXO that is given is not changed
    either, which the server may still need.

    Args:
        codec: as everywhere in Tensorbus, such as ``nf4``, ``int8``, ``uniform`` or ``rotate | lloyd:2``. A
            DXO of the kind WEIGHT_DIFF is what ``delta`` would send; that stage is not to be had here.
        keep: patterns of names that are sent exactly.

    Raises:
        InvalidSpecification, UnknownCodec: the codec is malformed, or needs what there is not.
        From `process`, which FLARE turns into a failed task:
        NonFiniteValues, UnsupportedContainer, …: naming the parameter.
        InvalidRequest: the DXO was processed by something else, such as encryption.
    """

    def __init__(self, codec: str = "nf4", keep: Sequence[str] = ()) -> None:
        super().__init__(supported_data_kinds=KINDS, data_kinds_to_filter=KINDS)
        # Plain attributes of the arguments' names: from them, FLARE's job API writes a job's configuration.
        self.codec = codec
        self.keep = list(keep)
        self._pipeline = pipeline_of(codec, self.keep, based=False, where="TensorbusEncoder")

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The encoded DXO; None if it is encoded already."""
        algorithm = dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)
        if algorithm == ALGORITHM:
            return None
        if algorithm is not None:
            raise InvalidRequest(
                f"the weights are processed by {algorithm!r} already; put TensorbusEncoder before that"
            )
        values = cast("Mapping[str, Any]", dxo.data)
        serializer = registry.serializer_for(values)
        items = serializer.items(values)
        parts = Parts(serializer.name, items, self._pipeline)
        coded = {name: np.frombuffer(part, np.uint8) for name, part in parts}
        plain = sum(item.spec.nbytes for item in items if item.spec.view is None)
        size = sum(part.nbytes for part in coded.values())
        self.log_info(
            fl_ctx, f"{len(coded)} parameters, {plain} bytes as {size} ({100 * size / max(1, plain):.2f} %)"
        )
        made = DXO(dxo.data_kind, coded, {**(dxo.meta or {}), MetaKey.PROCESSED_ALGORITHM: ALGORITHM})
        made.set_meta_prop("tensorbus.bytes", [plain, size])
        return made


class TensorbusDecoder(DXOFilter):
    """Decodes what a TensorbusEncoder made, into arrays or tensors of the dtypes and shapes that they had.

    What is not encoded passes unchanged.

    Raises (from `process`, which FLARE turns into a failed task):
        FrameError (and its kinds), CodecError: the frames are damaged, or not all there.
    """

    def __init__(self) -> None:
        super().__init__(supported_data_kinds=KINDS, data_kinds_to_filter=KINDS)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The decoded DXO; None if it is not encoded."""
        if dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) != ALGORITHM:
            return None
        parts = {str(name): _part(str(name), value) for name, value in dict(dxo.data).items()}
        reader = Reader(sum(map(len, parts.values())))
        found = {item.name: item.value for item in reader.items(parts.values())}
        if found.keys() != parts.keys():
            raise ManifestMismatch(
                f"the frames hold {len(found)} parameters, and the DXO has {len(parts)} of other names"
            )
        made = DXO(dxo.data_kind, {name: found[name] for name in parts}, dict(dxo.meta or {}))
        made.remove_meta_props([MetaKey.PROCESSED_ALGORITHM, "tensorbus.bytes"])
        return made


def _part(name: str, value: object) -> memoryview:
    if isinstance(value, np.ndarray):
        array = cast("npt.NDArray[Any]", value)
        if array.dtype == np.uint8 and array.ndim == 1:
            return np.ascontiguousarray(array).data.cast("B")
    raise UnsupportedContainer(
        f"{name!r} holds no frames of Tensorbus: a filter between encoder and decoder has changed it"
    )
