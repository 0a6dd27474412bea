"""Which tests are the suite that every store has to pass, and which of these are about files."""

from __future__ import annotations

SUITE = frozenset(
    {
        "test_deliveries_stream",
        "test_policies",
        "test_redelivered_sizes",
        "test_replaced_keys",
        "test_retention",
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
        "test_store_deliveries",
        "test_store_messages",
        "test_uploads",
        "test_uploads_looked_at",
    }
)
"""Modules."""

CLUSTERED = frozenset(
    {
        "test_policies",
        "test_store_consumers",
        "test_store_deliveries",
    }
)
"""Those that run in memory and on three servers too when nobody asks for more: all would take minutes."""

_LOOK_AT_FILES = (
    "test_a_bad_body_is_refused_and_leaves_nothing",
    "test_a_bad_topic_is_refused",
    "test_a_batch_is_all_there_after_a_restart",
    "test_a_body_over_the_limit_is_refused_by_its_length",
    "test_a_body_over_the_limit_is_refused_while_it_comes",
    "test_a_body_that_ends_without_its_last_frame_is_dropped",
    "test_a_compressed_body_is_refused",
    "test_a_deleted_message_is_gone",
    "test_a_deleted_upload_is_gone_for_good",
    "test_a_file_without_a_row_and_a_row_without_a_file",
    "test_a_large_body_that_ends_early_is_refused",
    "test_a_message_deleted_under_its_upload_is_gone",
    "test_a_plain_body_has_to_say_its_length",
    "test_a_publisher_that_leaves_half_way_leaves_nothing",
    "test_a_purge_takes_letters_only",
    "test_a_refused_message_becomes_a_letter",
    "test_a_replayed_letter_goes_to_the_one_that_failed",
    "test_a_second_upload_of_an_open_key_takes_its_place",
    "test_a_silent_publisher_is_given_up",
    "test_a_small_body_in_one_turn_takes_no_file",
    "test_an_aborted_message_ends_its_readers_and_leaves_nothing",
    "test_an_upload_that_nobody_goes_on_with_expires",
    "test_bad_frames_are_refused",
    "test_delete_gives_space_back_but_not_under_a_reader",
    "test_names_never_reach_the_file_system",
    "test_the_oldest_messages_make_room_for_new_ones",
)
"""They count files in the data directory, or look into its database."""

_SPOIL_FILES = (
    "test_a_damaged_message_is_replaced_under_its_key",
    "test_head_answers_while_the_disk_is_full",
    "test_head_of_an_upload_that_cannot_be_listed",
    "test_what_a_crash_has_spoiled_is_cut_off",
    "test_what_is_whole_again_is_not_replaced",
    "test_who_has_settled_it_does_not_follow_its_replacement",
)
"""They damage files behind the broker's back, or fill the disk."""

_OWN_STORE = (
    "test_a_crash_between_link_and_row_leaves_nothing",
    "test_a_failed_burial_is_tried_again",
    "test_a_killed_broker_keeps_the_upload_or_the_message",
    "test_a_late_note_does_not_undo_an_ack",
    "test_what_nobody_waited_for_counts_no_attempt_after_a_restart",
    "test_what_somebody_writes_to_is_put_off_before_it_ends",
)
"""They make a store of their own of the embedded one, or copy its directory."""

ABOUT_FILES = frozenset((*_LOOK_AT_FILES, *_SPOIL_FILES, *_OWN_STORE))
"""Tests of the suite that have to do with the embedded store only."""
