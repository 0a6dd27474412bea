"""Bases from containers and files: what a message may be encoded against.

A file is read with ``pread`` where and when its values are needed; nothing of it stays in memory.
"""

from __future__ import annotations

import weakref

from tensorbus.codecs.bases import Base, ItemBase

from .sources import Source, open_source


class SourceBase(ItemBase):
    """A base that reads a source, and closes it with itself."""

    def __init__(self, source: Source, base_id: str | None = None) -> None:
        self.close = weakref.finalize(self, source.close)
        """Close what was opened to read it; may be called twice, and is when nobody refers to the base."""
        super().__init__(source.items(), base_id)


def open_base(given: object, base_id: str | None = None) -> Base:
    """The base that ``given`` is. Blocks: where the id is not given, all values are read once.

    Args:
        given: the path of a ``.safetensors`` file, a container of torch or numpy, a Source, or a Base, which
            is returned as it is. Neither file nor container may be changed as long as the base is in use.
        base_id: where it is known already, such as ``message:`` and the digest of the message that it is.

    Raises:
        UnsupportedContainer, UnsupportedDtype, InvalidName: it cannot be one.
        StorageError: the file cannot be read.
    """
    return given if isinstance(given, Base) else SourceBase(open_source(given), base_id)
