"""Lesson 8, solved: minipage's own prefix cache."""

from minipage.memory import PrefixCache

__all__ = ["PrefixCache"]
