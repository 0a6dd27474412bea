"""Targets of coverage-guided fuzzing: `python -m fuzzing.TARGET [OPTIONS OF libFuzzer] [CORPUS]`."""
