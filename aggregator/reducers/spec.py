"""ReducerSpec: what a reducer is made of, as people, jobs and messages write it.

    clip:1.0 | trimmed:0.1 | fedadam:lr=0.01

is transforms of single updates, one combiner (``mean`` where none is named), and at most one server
optimiser, in this order. The grammar is that of codecs: ``name:parameter=value,…``, and the first value may
go without its name where a step has a primary parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from tensorbus.errors import InvalidSpecification, TensorbusError

from .steps import Combiner, ServerOptimizer, Step, Transform

if TYPE_CHECKING:
    from tensorbus.aggregator.layout import Layout

    from .base import Reducer, Workspace

STEPS: dict[str, str] = {
    "clip": "tensorbus.aggregator.reducers.clip:Clip",
    "mean": "tensorbus.aggregator.reducers.averages:Average",
    "median": "tensorbus.aggregator.reducers.median:Median",
    "trimmed": "tensorbus.aggregator.reducers.trimmed:Trimmed",
    "krum": "tensorbus.aggregator.reducers.krum:Krum",
    "multi-krum": "tensorbus.aggregator.reducers.krum:MultiKrum",
    "fedavgm": "tensorbus.aggregator.reducers.optimizers:FedAvgM",
    "fedadam": "tensorbus.aggregator.reducers.adaptive:FedAdam",
    "fedyogi": "tensorbus.aggregator.reducers.adaptive:FedYogi",
    "fedadagrad": "tensorbus.aggregator.reducers.adaptive:FedAdagrad",
}

GROUP = "tensorbus.reducers"
"""Of entry points. The built-in names cannot be taken over."""

DEFAULT = "mean"
MAX_STEPS = 8
MAX_TEXT = 4096

_INTEGER = re.compile(r"[+-]?\d{1,18}")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReducerSpec:
    """The steps of a reducer.

    Attributes:
        transforms: of each update, in this order.
        combiner: of the updates.
        optimizer: what the server does with that; None takes it as the next model.
    """

    transforms: tuple[Transform, ...]
    combiner: Combiner
    optimizer: ServerOptimizer | None = None

    @classmethod
    def parse(cls, spec: ReducerSpec | str | Mapping[str, object] | None = None) -> ReducerSpec:
        """A specification from what people and messages write.

        Args:
            spec: None (the weighted mean), a text as above, or the JSON form that ``to_json`` gives,
                ``{"steps": [{"name": "clip", "norm": 1.0}, {"name": "median"}]}``.

        Raises:
            InvalidSpecification: it is malformed, names a step that is not installed, gives it parameters
                that it does not take, or its steps make no sense in this order.
        """
        if isinstance(spec, cls):
            return spec
        if spec is None:
            spec = DEFAULT
        configs = _from_text(spec) if isinstance(spec, str) else _from_json(spec)
        if not 1 <= len(configs) <= MAX_STEPS:
            raise InvalidSpecification(f"a reducer has 1 to {MAX_STEPS} steps, not {len(configs)}")
        return _ordered([_step(config) for config in configs])

    def to_json(self) -> dict[str, object]:
        """The JSON form; ``parse`` rebuilds it."""
        return {"steps": [step.config() for step in self.steps]}

    def __str__(self) -> str:
        return " | ".join(_text(step.config()) for step in self.steps)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them, in their order."""
        last = () if self.optimizer is None else (self.optimizer,)
        return (*self.transforms, self.combiner, *last)

    @property
    def least(self) -> int:
        """How many updates a round needs at least."""
        return self.combiner.least

    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        """The reducer for models of this layout.

        Raises:
            UnsupportedDtype: it cannot combine a tensor of the layout.
        """
        reducer = self.combiner.build(layout, workspace)
        for transform in reversed(self.transforms):
            reducer = transform.wrap(reducer)
        return reducer if self.optimizer is None else self.optimizer.wrap(reducer)


def installed() -> list[str]:
    """The names of all steps, built-in ones first."""
    return [*STEPS, *sorted({point.name for point in entry_points(group=GROUP)} - STEPS.keys())]


def _ordered(steps: Sequence[Step]) -> ReducerSpec:
    text = " | ".join(step.name for step in steps)
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise InvalidSpecification(f"{text}: a step stands there twice")
    combiners = [step for step in steps if isinstance(step, Combiner)]
    optimizers = [step for step in steps if isinstance(step, ServerOptimizer)]
    transforms = tuple(step for step in steps if isinstance(step, Transform))
    for kind, found in ("combiners", combiners), ("server optimisers", optimizers):
        if len(found) > 1:
            some = " and ".join(step.name for step in found)
            raise InvalidSpecification(f"{text}: {some} are both {kind}; a reducer has one")
    combiner = combiners[0] if combiners else cast(Combiner, _step({"name": DEFAULT}))
    right = [*transforms, *combiners, *optimizers]
    if list(steps) != right:
        raise InvalidSpecification(
            f"{text}: the order is {' | '.join(step.name for step in right)}: what is done to each update, "
            "then what combines them, then what the server does with the result"
        )
    return ReducerSpec(transforms, combiner, optimizers[0] if optimizers else None)


def _from_text(text: str) -> list[dict[str, object]]:
    if len(text) > MAX_TEXT:
        raise InvalidSpecification(f"a reducer of {len(text)} characters; at most {MAX_TEXT} are read")
    return [_parsed(part.strip(), text) for part in text.split("|", MAX_STEPS)]


def _parsed(part: str, text: str) -> dict[str, object]:
    name, _, rest = part.partition(":")
    name = name.strip()
    config: dict[str, object] = {"name": name}
    for at, assignment in enumerate(filter(None, rest.split(","))):
        key, equals, value = assignment.partition("=")
        if not equals and at == 0 and (main := _class(name).primary):
            key, equals, value = main, "=", assignment
        key, value = key.strip(), value.strip()
        if not equals or not key or not value:
            raise InvalidSpecification(
                f"cannot read {assignment!r:.80} in {text!r:.200}; write {name}:parameter=value"
            )
        if key in config:
            raise InvalidSpecification(f"{text!r:.200}: {name} has {key!r:.80} twice")
        config[key] = _value(value)
    return config


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _text(config: Mapping[str, object]) -> str:
    given = [
        f"{key}={str(value).lower()}" for key, value in config.items() if key != "name" and value is not None
    ]
    return f"{config['name']}{':' if given else ''}{','.join(given)}"


def _from_json(spec: object) -> list[dict[str, object]]:
    if not isinstance(spec, Mapping):
        raise InvalidSpecification(f"a reducer is a text or an object, not {spec!r:.80}")
    given = cast("Mapping[str, object]", spec)
    if unknown := [key for key in given if key != "steps"]:
        raise InvalidSpecification(f"a reducer has no field {unknown[0]!r:.80}; it has steps")
    steps = given.get("steps")
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise InvalidSpecification(f"a reducer's steps are a list, not {steps!r:.80}")
    return [_config(step) for step in cast("Sequence[object]", steps)[: MAX_STEPS + 1]]


def _config(step: object) -> dict[str, object]:
    if isinstance(step, str):
        return {"name": step}
    if not isinstance(step, Mapping):
        raise InvalidSpecification(f"a reducer's step is a name or an object, not {step!r:.80}")
    return {str(key): value for key, value in cast("Mapping[object, object]", step).items()}


def _step(config: dict[str, object]) -> Step:
    name = config.get("name")
    if not isinstance(name, str):
        raise InvalidSpecification(f"a reducer's step {config!r:.200} has no name")
    parameters = {key: value for key, value in config.items() if key != "name" and value is not None}
    try:
        made = _class(name)(**parameters)
    except TensorbusError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidSpecification(
            f"{name!r:.80} does not take the parameters {parameters!r:.200}: {error!s:.200}"
        ) from error
    if not isinstance(made, Transform | Combiner | ServerOptimizer):
        raise InvalidSpecification(f"the plug-in {name!r:.80} is no Transform, Combiner or ServerOptimizer")
    return made


def _class(name: str) -> type[Step]:
    if name in STEPS:
        module, _, attribute = STEPS[name].partition(":")
        return cast("type[Step]", getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP, name=name):
        cls = point.load()
        if isinstance(cls, type) and issubclass(cls, Step):
            return cls
        raise InvalidSpecification(f"the plug-in {name!r:.80} is no class of steps")
    raise InvalidSpecification(f"no reducer {name!r:.64} is installed; there are: {', '.join(installed())}")
