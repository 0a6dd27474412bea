"""Which tests are the suite that every store has to pass, and which of these are about files."""

from __future__ import annotations

SUITE = frozenset(
    {
        "test_deliveries_stream",
        "test_policies",
        "test_redelivered_sizes",
        "test_replaced_keys",
        "test_retention",
        "test_retention_interest",
        "test_retention_policies",
        "test_room_in_doubt",
        "test_server_batch",
        "test_server_consumers",
        "test_server_download",
        "test_server_fast_paths",
        "test_server_operations",
        "test_server_publish",
        "test_server_receipts",
        "test_server_transfers",
        "test_server_tus",
        "test_store_consumers",
        "test_store_dead",
        "test_store_dead_replay",
        "test_store_deliveries",
        "test_store_delivery_order",
        "test_store_messages",
        "test_store_publishing",
        "test_uploads",
        "test_uploads_looked_at",
    }
)
"""Modules."""

FOLLOWED = frozenset({"test_server_publish", "test_server_tus"})
"""Those that publish over HTTP, and do so at a broker that does not lead, too."""

CLUSTERED = frozenset(
    {
        "test_policies",
        "test_store_consumers",
        "test_store_deliveries",
        "test_store_delivery_order",
    }
)
"""Those that run in memory and on three servers too when nobody asks for more: all would take minutes."""

_SPOIL_FILES = (
    "test_head_answers_while_the_disk_is_full",
    "test_head_of_an_upload_that_cannot_be_listed",
    "test_what_a_crash_has_spoiled_is_cut_off",
)
"""They damage files behind the broker's back, or fill the disk."""

_OWN_STORE = (
    "test_a_key_that_is_stored_while_another_begins_is_stored_once",
    "test_a_crash_between_link_and_row_leaves_nothing",
    "test_a_file_without_a_row_and_a_row_without_a_file",
    "test_a_failed_burial_is_tried_again",
    "test_a_killed_broker_keeps_the_upload_or_the_message",
    "test_a_late_note_does_not_undo_an_ack",
    "test_what_nobody_waited_for_counts_no_attempt_after_a_restart",
    "test_what_somebody_writes_to_is_put_off_before_it_ends",
)
"""They make a store of their own of the embedded one, or copy its directory."""

ABOUT_FILES = frozenset((*_SPOIL_FILES, *_OWN_STORE))
"""Tests of the suite that have to do with the embedded store only."""
