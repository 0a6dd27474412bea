"""Broker, publishers and workers as processes that are killed; what they saw is checked."""
