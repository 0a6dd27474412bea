"""A broker with tokens, for tests of who may do what."""

from .place import Place

__all__ = ["Place"]
