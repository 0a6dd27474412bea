"""Pipeline: which quantizer each item of a message gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from tensorbus.errors import InvalidSpecification

from .base import Quantizer
from .item import ItemSpec
from .registry import quantizer

MAX_PATTERNS = 256
MAX_PATTERN_LENGTH = 1024

_NONE = quantizer("none")


@dataclass(frozen=True)
class Pipeline:
    """A quantizer, and the names of the items that are kept exact.

    Attributes:
        quantizer: encodes the items that it accepts.
        keep: patterns (``*``, ``?``, ``[...]``, case matters) of names that are sent as they are.
    """

    quantizer: Quantizer = _NONE
    keep: tuple[str, ...] = ()

    @classmethod
    def parse(cls, spec: Pipeline | str | Mapping[str, object] | None, keep: Iterable[str] = ()) -> Pipeline:
        """A pipeline from what people and messages write.

        Args:
            spec: None (exact), ``"nf4"``, ``"nf4:blocksize=128"``, or the JSON form that ``to_json`` gives,
                ``{"quantizer": {"name": "nf4", "blocksize": 64}, "keep": ["*norm*"]}``.
            keep: further patterns.

        Raises:
            InvalidSpecification: the specification is malformed.
            UnknownCodec: it names a quantizer that is not installed.
        """
        if isinstance(spec, str):
            parsed = cls(quantizer(_from_text(spec)))
        elif isinstance(spec, Mapping):
            parsed = cls._from_json(spec)
        else:
            parsed = spec or cls()
        return cls(parsed.quantizer, _patterns([*parsed.keep, *_listed(keep)]))

    @classmethod
    def _from_json(cls, spec: Mapping[str, object]) -> Pipeline:
        if unknown := [key for key in spec if key not in ("quantizer", "keep")]:
            raise InvalidSpecification(f"a pipeline has no field {unknown[0]!r}; it has quantizer and keep")
        config = spec.get("quantizer", "none")
        if not isinstance(config, (str, Mapping)):
            raise InvalidSpecification(f"a pipeline's quantizer is a name or an object, not {config!r}")
        keep = _patterns(_listed(spec.get("keep", ())))
        return cls(quantizer(cast("str | Mapping[str, object]", config)), keep)

    def to_json(self) -> dict[str, object]:
        """The JSON form; ``Pipeline.parse`` rebuilds it."""
        return {"quantizer": self.quantizer.config(), "keep": list(self.keep)}

    def quantizer_for(self, spec: ItemSpec) -> Quantizer:
        """The quantizer for one item; ``none`` where it is to be kept, or would not get smaller."""
        chosen = self.quantizer
        if (
            spec.kind != "tensor"
            or not chosen.accepts(spec.dtype)
            or any(fnmatchcase(spec.name, pattern) for pattern in self.keep)
            or chosen.encoded_size(spec.count, spec.dtype) >= spec.nbytes
        ):
            return _NONE
        return chosen


def _from_text(text: str) -> dict[str, object]:
    name, _, rest = text.partition(":")
    config: dict[str, object] = {"name": name}
    for assignment in filter(None, rest.split(",")):
        key, equals, value = assignment.partition("=")
        if not equals or not key or not value:
            raise InvalidSpecification(f"cannot read {assignment!r} in {text!r}; write codec:parameter=value")
        config[key] = int(value) if value.isdecimal() else value
    return config


def _listed(patterns: object) -> list[object]:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise InvalidSpecification(f"keep is a list of name patterns, not {patterns!r}")
    return list(cast(Iterable[object], patterns))


def _patterns(patterns: list[object]) -> tuple[str, ...]:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidSpecification(f"{len(patterns)} keep patterns are more than {MAX_PATTERNS}")
    for pattern in patterns:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_LENGTH:
            raise InvalidSpecification(f"a keep pattern is a text of 1 to {MAX_PATTERN_LENGTH} characters")
    return tuple(dict.fromkeys(cast(list[str], patterns)))
