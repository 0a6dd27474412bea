"""Whole rounds of a federation, measured: processes, models, and tables."""
