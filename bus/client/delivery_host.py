"""What all deliveries of one subscription share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .acks import Acks
from .bases import Bases
from .connection import Connection


@dataclass(frozen=True, slots=True)
class DeliveryHost:
    """Attributes:
    settled: told the token of a delivery that is settled.
    """

    connection: Connection
    bases: Bases
    acks: Acks
    settled: Callable[[str], None]
