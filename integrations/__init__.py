"""Tensorbus inside other frameworks: each module imports its framework, and needs the extra of that name."""
