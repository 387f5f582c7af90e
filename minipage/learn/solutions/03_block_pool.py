"""Lesson 3, solved: minipage's own block pool."""

from minipage.memory import BlockPool

__all__ = ["BlockPool"]
