"""A federation of real processes that are killed, paused, doubled and delayed; and what it has to come to."""
