"""What a reducer is made of: transforms of single updates, a combiner, a server optimiser.

A step is its configuration: a frozen dataclass whose fields are the parameters that a text may give. Third
parties offer theirs as entry points of the group ``tensorbus.reducers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar, cast

from tensorbus.errors import InvalidSpecification

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from tensorbus.aggregator.layout import Layout

    from .base import Reducer, Workspace


class Step:
    """One of the parts; a frozen dataclass, which raises InvalidSpecification for parameters of no use."""

    name: ClassVar[str]
    """Under which the registry and specifications know it."""

    primary: ClassVar[str | None] = None
    """The parameter that a text may give without its name: ``clip:1.0`` is ``clip:norm=1.0``."""

    def config(self) -> dict[str, object]:
        """JSON-able configuration, with ``name``."""
        names = [field.name for field in fields(cast("DataclassInstance", self))]
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


class Transform(Step, ABC):
    """Changes what an update counts for before it is combined with the others."""

    @abstractmethod
    def wrap(self, combiner: Reducer) -> Reducer:
        """``combiner``, and this before it."""


class Combiner(Step, ABC):
    """Makes one model of many."""

    @abstractmethod
    def build(self, layout: Layout, workspace: Workspace) -> Reducer:
        """The reducer for models of this layout.

        Raises:
            UnsupportedDtype: it cannot combine a tensor of the layout.
        """

    @property
    def least(self) -> int:
        """How many updates it needs at least."""
        return 1


class ServerOptimizer(Step, ABC):
    """Goes from the round's model towards what the updates were combined to, by a rule of its own."""

    @abstractmethod
    def wrap(self, combiner: Reducer) -> Reducer:
        """``combiner``, and this behind it."""


def check_number(
    step: str,
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = True,
) -> None:
    """Refuse what is no number from ``low`` to ``high``, without a bound that is open.

    Raises:
        InvalidSpecification: saying which parameter has to be what.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        # NaN is neither above nor below anything.
        above = low < value if open_low else low <= value
        if above and (value < high if open_high else value <= high):
            return
    least = f"more than {low:g}" if open_low else f"at least {low:g}"
    most = f"less than {high:g}" if open_high else f"at most {high:g}"
    raise InvalidSpecification(f"{step}: {name} is {value!r:.80}; it must be {least} and {most}")


def check_count(step: str, name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number from ``low`` to ``high``.

    Raises:
        InvalidSpecification: saying which parameter has to be what.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidSpecification(
            f"{step}: {name} is {value!r:.80}; it must be a whole number from {low} to {high}"
        )


def check_flag(step: str, name: str, value: object) -> None:
    """Refuse what is neither true nor false.

    Raises:
        InvalidSpecification: saying which parameter has to be so.
    """
    if not isinstance(value, bool):
        raise InvalidSpecification(f"{step}: {name} is {value!r:.80}; it must be true or false")
