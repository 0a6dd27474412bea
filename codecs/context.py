"""CodecContext: what stages need at work beside their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tensorbus.errors import MissingBase

if TYPE_CHECKING:
    from .bases import Base
    from .item import ItemSpec
    from .privacy import Privacy
    from .residuals import ResidualPass


@dataclass(frozen=True, slots=True)
class CodecContext:
    """What one end of a transfer holds.

    Attributes:
        bases: containers that items may be encoded against, by their id.
        base: the one that a ``delta`` or ``same`` without an id means; None if there is none.
        residuals: where ``feedback`` finds the errors of the last message and leaves those of this one.
        privacy: what ``clip`` and ``gauss`` know of the message; the encoder of the message sees to it.
    """

    bases: Mapping[str, Base] = field(default_factory=dict[str, "Base"])
    base: Base | None = None
    residuals: ResidualPass | None = None
    privacy: Privacy | None = None

    def find(self, base_id: str | None) -> Base:
        """The base called ``base_id``; ``base`` where that is None.

        Raises:
            MissingBase: it is not at hand.
        """
        if base_id is None:
            if self.base is None:
                raise MissingBase("the pipeline works against a base, and none was given: give base=")
            return self.base
        if self.base is not None and self.base.id == base_id:
            return self.base
        try:
            return self.bases[base_id]
        except KeyError:
            raise MissingBase(
                f"the values are encoded against the base {base_id}, which is not at hand: give the "
                "container that has this id, or have the values sent without delta and same"
            ) from None

    def require(self, base_id: str, spec: ItemSpec) -> Base:
        """The base called ``base_id``, which holds ``spec``.

        Raises:
            MissingBase: it is not at hand, or does not.
        """
        base = self.find(base_id)
        if not base.holds(spec):
            raise MissingBase(
                f"the base {base_id} has no tensor {spec.name!r} of {spec.dtype} and shape {list(spec.shape)}"
            )
        return base


NO_CONTEXT = CodecContext()
