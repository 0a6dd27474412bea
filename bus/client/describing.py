"""What the broker says of a message, with its manifest."""

from __future__ import annotations

from tensorbus.bus.fields import Fields
from tensorbus.bus.messages import MessageInfo
from tensorbus.streaming.entries import Entry, parse_entry

from .connection import Connection, segment


async def describe(connection: Connection, message_id: str) -> tuple[MessageInfo, tuple[Entry, ...]]:
    """Ask the broker for a message and its manifest.

    Raises:
        NotFound: there is no such message.
    """
    answer = await connection.call("GET", f"/v1/messages/{segment(message_id)}")
    manifest = Fields(answer, "message").array("manifest")
    entries = tuple(parse_entry(Fields(entry, "manifest").document) for entry in manifest)
    return MessageInfo.from_json(answer), entries
