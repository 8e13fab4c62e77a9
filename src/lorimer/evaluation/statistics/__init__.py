"""Intervals, tests and power for paired items."""
