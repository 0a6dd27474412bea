"""Ids of messages."""

from __future__ import annotations

from uuid import UUID

from tensorbus.bus.broker.message_ids import new_id
from tensorbus.bus.topics import check_message_id


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    """Valid for the API and for RFC 9562, all different, later ones behind earlier ones."""
    times = [0.0, 1.001, 1_800_000_000.25, 281_474_976_710.0]
    ids = [check_message_id(new_id(time)) for time in times]
    assert sorted(ids) == ids
    assert {(UUID(each).version, UUID(each).variant) for each in ids} == {(7, UUID(ids[0]).variant)}
    assert UUID(ids[2]).int >> 80 == 1_800_000_000_250
    assert len({new_id(1.0) for _ in range(1000)}) == 1000
