"""What is done to a data directory before it is used: whatever a crash left behind is put in order.

Rows decide. A message's row is committed after its frames are on the disk, and removed before they are, so

- a frame file without a row, of a message or of an upload, was never acknowledged, or was deleted: it goes;
- a row without its frames, or with too few of them, is damage: the message is put aside, nobody else waits;
- a damaged message whose file was not moved yet, or was brought back by somebody, is left to the next scrub.

Nothing here grows with the number of messages.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from . import damage_rows
from .frame_files import FrameFolder
from .metadata import Metadata

_log = logging.getLogger("tensorbus.store")

_PAGE = 1000
_MOST_NAMED = 1000


@dataclass(slots=True)
class Recovered:
    """What was found: damaged messages, those of them that were not known before, and files removed.

    ``superseded`` uploads are for the caller to delete.
    """

    damaged: dict[str, str] = field(default_factory=dict[str, str])
    fresh: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    superseded: list[str] = field(default_factory=list[str])
    leftovers: list[str] = field(default_factory=list[str])
    removed: int = 0


def recover(metadata: Metadata, folder: FrameFolder) -> Recovered:
    """Put the directory in order. Blocks; before anybody else uses it. Raises StorageError."""
    found = Recovered(metadata.read_now(damage_rows.damaged))
    found.superseded = metadata.read_now(damage_rows.superseded)
    _remove_leftovers(metadata, folder, found)
    _find_damage(metadata, folder, found)
    if found.removed:
        _log.info("removed %d frame files of uploads that were never completed", found.removed)
    for message_id, reason in found.fresh:
        _log.error("message %s is damaged: %s; it is not delivered", message_id, reason)
    return found


def _remove_leftovers(metadata: Metadata, folder: FrameFolder, found: Recovered) -> None:
    for batch in folder.ids():
        known = metadata.read_now(damage_rows.known(batch))
        for message_id in batch:
            if message_id not in known:
                folder.remove(message_id)
                _note(found, f"frames/{message_id}.frames")
    for batch in folder.quarantined_ids():
        known = metadata.read_now(damage_rows.known(batch))
        for message_id in batch:
            if message_id not in known:
                folder.drop_quarantined(message_id)
                _note(found, f"quarantine/{message_id}.frames")


def _note(found: Recovered, name: str) -> None:
    found.removed += 1
    if len(found.leftovers) < _MOST_NAMED:
        found.leftovers.append(name)


def _find_damage(metadata: Metadata, folder: FrameFolder, found: Recovered) -> None:
    after = 0
    while page := metadata.read_now(damage_rows.sizes(after, _PAGE)):
        for seq, message_id, size, inline in page:
            after = seq
            if message_id in found.damaged:
                continue
            if inline is None:
                problem = folder.problem(message_id, size)
            else:
                problem = (
                    None if inline == size else f"its row has {inline} bytes of frames instead of {size}"
                )
            if problem is not None:
                found.damaged[message_id] = problem
                found.fresh.append((message_id, problem))
