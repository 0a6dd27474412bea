"""Names to quantizers, stages and serializers.

A codec is imported when its name first comes up, so a message of numpy arrays never imports torch. Third
parties add theirs with entry points in the groups ``tensorbus.quantizers``, ``tensorbus.stages`` and
``tensorbus.serializers``; the built-in names cannot be taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from tensorbus.errors import InvalidSpecification, TensorbusError, UnknownCodec, UnsupportedContainer

from .base import Quantizer, Serializer, Stage

QUANTIZERS: dict[str, str] = {
    "none": "tensorbus.codecs.quantizers.none:NoQuantizer",
    "fp16": "tensorbus.codecs.quantizers.fp16:FP16",
    "bf16": "tensorbus.codecs.quantizers.bf16:BF16",
    "int8": "tensorbus.codecs.quantizers.int8:Int8",
    "fp4": "tensorbus.codecs.quantizers.fp4:FP4",
    "nf4": "tensorbus.codecs.quantizers.nf4:NF4",
    "nf4-dq": "tensorbus.codecs.quantizers.nf4_dq:NF4DQ",
    "uniform": "tensorbus.codecs.quantizers.uniform:Uniform",
    "lloyd": "tensorbus.codecs.quantizers.lloyd:Lloyd",
    "lossless": "tensorbus.codecs.quantizers.lossless:Lossless",
}

STAGES: dict[str, str] = {
    "delta": "tensorbus.codecs.stages.delta:Delta",
    "same": "tensorbus.codecs.stages.same:Same",
    "feedback": "tensorbus.codecs.stages.feedback:Feedback",
    "rotate": "tensorbus.codecs.stages.rotate:Rotate",
    "clip": "tensorbus.codecs.stages.clip:Clip",
    "gauss": "tensorbus.codecs.stages.gauss:Gauss",
}

SERIALIZERS: dict[str, str] = {
    "torch": "tensorbus.codecs.serializers.torch:TorchSerializer",
    "numpy": "tensorbus.codecs.serializers.numpy:NumpySerializer",
}
"""In the order in which they are asked whether they recognise a container."""

QUANTIZER_GROUP = "tensorbus.quantizers"
STAGE_GROUP = "tensorbus.stages"
SERIALIZER_GROUP = "tensorbus.serializers"


def quantizer(config: str | Mapping[str, object]) -> Quantizer:
    """The quantizer called ``config``, or built from a configuration ``{"name": ..., parameter: value}``.

    Quantizers keep no state, so equal configurations may give the same object.

    Raises:
        UnknownCodec: no quantizer of that name is installed.
        InvalidSpecification: the configuration is malformed, or the quantizer refuses its parameters.
    """
    return _quantizer(_frozen(config))


def stage(config: str | Mapping[str, object]) -> Stage:
    """The stage called ``config``, or built from a configuration ``{"name": ..., parameter: value}``.

    Raises:
        UnknownCodec: no stage of that name is installed.
        InvalidSpecification: the configuration is malformed, or the stage refuses its parameters.
    """
    return _stage(_frozen(config))


def is_stage(name: str) -> bool:
    """Whether a stage is called so, and no quantizer."""
    return name in installed(STAGES, STAGE_GROUP)


def primary(name: str) -> str | None:
    """Which parameter the quantizer or stage called ``name`` takes without its name; None if none.

    Raises:
        UnknownCodec: nothing of that name is installed.
    """
    if is_stage(name):
        cls = _load(name, STAGES, STAGE_GROUP, "stage")
    else:
        cls = _load(name, QUANTIZERS, QUANTIZER_GROUP, "quantizer")
    return cast("str | None", getattr(cls, "primary", None))


def _frozen(config: str | Mapping[str, object]) -> str:
    """A configuration as text, under which what is built from it can be kept."""
    parameters: dict[str, object] = {"name": config} if isinstance(config, str) else dict(config)
    try:
        return json.dumps(parameters, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSpecification(
            f"codec configuration {config!r:.200} is no JSON object: {error!s:.200}"
        ) from error


@lru_cache(maxsize=64)
def _quantizer(config: str) -> Quantizer:
    made = _built(config, QUANTIZERS, QUANTIZER_GROUP, "quantizer")
    if not isinstance(made, Quantizer):
        raise UnknownCodec(f"the plug-in for codec {config:.200} is no Quantizer")
    return made


@lru_cache(maxsize=64)
def _stage(config: str) -> Stage:
    made = _built(config, STAGES, STAGE_GROUP, "stage")
    if not isinstance(made, Stage):
        raise UnknownCodec(f"the plug-in for stage {config:.200} is no Stage")
    return made


def _built(config: str, table: Mapping[str, str], group: str, noun: str) -> object:
    parameters = cast(dict[str, object], json.loads(config))
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise InvalidSpecification(f"codec configuration {config:.200} has no name")
    cls = _load(name, table, group, noun)
    try:
        return cls(**parameters)
    except TensorbusError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidSpecification(
            f"{noun} {name!r:.80} does not take the parameters {parameters!r:.200}: {error!s:.200}"
        ) from error


def serializer(name: str) -> Serializer:
    """The serializer for containers of the kind ``name``.

    Raises:
        UnknownCodec: none of that name is installed.
    """
    made = _load(name, SERIALIZERS, SERIALIZER_GROUP, "serializer")()
    if not isinstance(made, Serializer):
        raise UnknownCodec(f"the plug-in for containers of kind {name!r} is no Serializer")
    return made


def serializer_for(container: object) -> Serializer:
    """The serializer that recognises ``container``; the built-in ones are asked first.

    Raises:
        UnsupportedContainer: none does.
    """
    for name in installed(SERIALIZERS, SERIALIZER_GROUP):
        candidate = serializer(name)
        if candidate.recognises(container):
            return candidate
    kind = f"{type(container).__module__}.{type(container).__qualname__}"
    raise UnsupportedContainer(
        f"no serializer recognises a {kind}; give a torch Module or state_dict, a dict of numpy arrays, "
        "or the path of a .safetensors file"
    )


def installed(table: Mapping[str, str], group: str) -> list[str]:
    """The names of a table and of its plug-ins, built-in ones first."""
    return [*table, *sorted({point.name for point in entry_points(group=group)} - table.keys())]


def _load(name: str, table: Mapping[str, str], group: str, noun: str) -> type:
    if name in table:
        module, _, attribute = table[name].partition(":")
        return cast(type, getattr(import_module(module), attribute))
    for point in entry_points(group=group, name=name):
        return cast(type, point.load())
    raise UnknownCodec(
        f"no {noun} {name[:64]!r} is installed; there are: {', '.join(installed(table, group))}"
    )
