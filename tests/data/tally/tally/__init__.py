"""Ranges of numbers as people write them."""

from tally.ranges import expand, collapse

__all__ = ["expand", "collapse"]
