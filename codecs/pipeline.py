"""Pipeline: what is done to each item of a message: stages, then a quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from tensorbus.errors import InvalidSpecification

from . import registry
from .base import Quantizer, Stage
from .context import CodecContext

MAX_STAGES = 8
MAX_PATTERNS = 256
MAX_PATTERN_LENGTH = 1024

_NONE = registry.quantizer("none")
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


@dataclass(frozen=True)
class Pipeline:
    """Stages, a quantizer, the names of the items that are kept exact, and of those that are not sent.

    Attributes:
        quantizer: encodes the items that it accepts.
        keep: patterns (``*``, ``?``, ``[...]``, case matters) of names that arrive as they are.
        stages: what is done to the values before, in this order.
        skip: patterns of names that are never sent; of tensors that share storage, one name is enough.
    """

    quantizer: Quantizer = _NONE
    keep: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    skip: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        spec: Pipeline | str | Mapping[str, object] | None,
        keep: Iterable[str] = (),
        skip: Iterable[str] = (),
    ) -> Pipeline:
        """A pipeline from what people and messages write.

        Args:
            spec: None (exact), ``"nf4"``, ``"nf4:blocksize=128"``, ``"delta | feedback | rotate | lloyd:2"``,
                or the JSON form that ``to_json`` gives, ``{"stages": [{"name": "delta"}], "quantizer":
                {"name": "nf4", "blocksize": 64}, "keep": ["*norm*"]}``.
            keep, skip: further patterns.

        Raises:
            InvalidSpecification: the specification is malformed, or its stages make no sense in this order.
            UnknownCodec: it names a stage or a quantizer that is not installed.
        """
        if isinstance(spec, str):
            parsed = _from_text(spec)
        elif isinstance(spec, Mapping):
            parsed = _from_json(spec)
        else:
            parsed = spec or cls()
        check_order(parsed.stages, parsed.quantizer)
        return replace(
            parsed,
            keep=_patterns("keep", [*parsed.keep, *_listed("keep", keep)]),
            skip=_patterns("skip", [*parsed.skip, *_listed("skip", skip)]),
        )

    def to_json(self) -> dict[str, object]:
        """The JSON form; ``Pipeline.parse`` rebuilds it."""
        stages = {"stages": [stage.config() for stage in self.stages]} if self.stages else {}
        skip = {"skip": list(self.skip)} if self.skip else {}
        return {**stages, "quantizer": self.quantizer.config(), "keep": list(self.keep), **skip}

    @property
    def clip(self) -> float | None:
        """The L2 norm that whole messages are clipped to; None if they are not."""
        for stage in self.stages:
            if stage.name == "clip":
                return cast("float", stage.config()["norm"])
        return None

    @property
    def noisy(self) -> bool:
        """Whether the same values are other bytes in each message, as the noise is drawn anew."""
        return any(stage.private and stage.name != "clip" for stage in self.stages)

    @property
    def keeps_errors(self) -> bool:
        """Whether a stage keeps what was left out of a message, for the next one: see `Residuals`."""
        return any(not stage.undone and not stage.private for stage in self.stages)

    def resolved(self, context: CodecContext) -> Pipeline:
        """The pipeline with the id of the base in each stage that left it to the context.

        Raises:
            MissingBase: a stage works against a base that the context lacks.
            InvalidSpecification: a stage needs something else that the context lacks.
        """
        return replace(self, stages=tuple(stage.resolved(context) for stage in self.stages))


def check_order(stages: Sequence[Stage], quantizer: Quantizer) -> None:
    """Refuse what makes no sense.

    Raises:
        InvalidSpecification: too many stages, one twice, ``delta`` or ``same`` not in the first place,
            ``feedback`` behind a stage that computes, behind ``same``, or before a quantizer without error,
            ``clip`` not behind ``delta``, ``gauss`` not behind ``clip``.
    """
    if len(stages) > MAX_STAGES:
        raise InvalidSpecification(f"{len(stages)} stages are more than {MAX_STAGES}")
    names = [stage.name for stage in stages]
    text = " | ".join([*names, quantizer.name])
    if len(set(names)) < len(names):
        raise InvalidSpecification(f"{text}: a stage stands there twice")
    if sum(stage.against_base for stage in stages) > 1:
        raise InvalidSpecification(f"{text}: delta and same exclude each other")
    for at, stage in enumerate(stages):
        before = stages[:at]
        if stage.against_base and before:
            raise InvalidSpecification(f"{text}: {stage.name} comes first, where values are as in the base")
        if stage.follows is not None:
            if not before or before[-1].name != stage.follows:
                raise InvalidSpecification(f"{text}: {stage.name} comes right behind {stage.follows}")
            continue
        if stage.undone:
            continue
        if any(one.exact or not one.against_base for one in before):
            raise InvalidSpecification(
                f"{text}: {stage.name} comes first, or right behind delta: it keeps errors of the values "
                "that the receiver gets"
            )
        if quantizer.exact:
            raise InvalidSpecification(f"{text}: {quantizer.name} leaves no error for {stage.name} to keep")


def _from_text(text: str) -> Pipeline:
    configs = [_parsed(part.strip(), text) for part in text.split("|")]
    for config in configs[:-1]:
        if not registry.is_stage(name := str(config["name"])):
            # An unknown name is told as such; a quantizer is not what is meant here.
            registry.quantizer(name)
            raise InvalidSpecification(f"{text!r}: the quantizer {name} comes last, behind the stages")
    if registry.is_stage(last := str(configs[-1]["name"])):
        raise InvalidSpecification(
            f"{text!r}: {last} is a stage; a quantizer comes last, such as {last} | nf4, or {last} | none"
        )
    stages = tuple(registry.stage(config) for config in configs[:-1])
    return Pipeline(registry.quantizer(configs[-1]), stages=stages)


def _parsed(part: str, text: str) -> dict[str, object]:
    name, _, rest = part.partition(":")
    config: dict[str, object] = {"name": name}
    for at, assignment in enumerate(filter(None, rest.split(","))):
        key, equals, value = assignment.partition("=")
        if not equals and at == 0 and (main := registry.primary(name)):
            key, equals, value = main, "=", assignment
        if not equals or not key or not value:
            raise InvalidSpecification(f"cannot read {assignment!r} in {text!r}; write codec:parameter=value")
        config[key.strip()] = _value(value.strip())
    return config


def _value(text: str) -> int | float | str:
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _from_json(spec: Mapping[str, object]) -> Pipeline:
    if unknown := [key for key in spec if key not in ("stages", "quantizer", "keep", "skip")]:
        raise InvalidSpecification(
            f"a pipeline has no field {unknown[0]!r}; it has stages, quantizer, keep and skip"
        )
    stages = spec.get("stages", ())
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise InvalidSpecification(f"a pipeline's stages are a list, not {stages!r:.80}")
    keep, skip = (_patterns(name, _listed(name, spec.get(name, ()))) for name in ("keep", "skip"))
    return Pipeline(
        registry.quantizer(_config(spec.get("quantizer", "none"), "quantizer")),
        keep,
        tuple(registry.stage(_config(stage, "stage")) for stage in cast("Sequence[object]", stages)),
        skip,
    )


def _config(config: object, noun: str) -> str | Mapping[str, object]:
    if not isinstance(config, (str, Mapping)):
        raise InvalidSpecification(f"a pipeline's {noun} is a name or an object, not {config!r:.80}")
    return cast("str | Mapping[str, object]", config)


def _listed(name: str, patterns: object) -> list[object]:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise InvalidSpecification(f"{name} is a list of name patterns, not {patterns!r:.200}")
    return list(cast(Iterable[object], patterns))


def _patterns(name: str, patterns: list[object]) -> tuple[str, ...]:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidSpecification(f"{len(patterns)} {name} patterns are more than {MAX_PATTERNS}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_LENGTH:
            raise InvalidSpecification(f"a {name} pattern is a text of 1 to {MAX_PATTERN_LENGTH} characters")
    return tuple(dict.fromkeys(cast(list[str], patterns)))
