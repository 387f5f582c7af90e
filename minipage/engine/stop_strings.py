"""Stop strings: found in a text while it grows, and not shown before it is clear whether one has begun.

stop="the end"    text  In the e          shown  In            " the e" may become one
                  text  In the east       shown  In the        (and the next few characters likewise)
                  text  This is the end   shown  This is       finished: cut off where it begins
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, repr=False)
class StopStrings:
    """What ends one text, and where."""

    strings: tuple[str, ...]
    is_kept: bool  # the text ends with the string, instead of before it

    def __post_init__(self) -> None:
        self.found: str | None = None
        self.end: int | None = None  # where the text is cut off, if one was found
        self._num_searched = 0  # characters of the text in which none ends

    def look(self, text: str, may_stop: bool) -> None:
        """Note in `found` and `end` what ends the text, if that is in what is new; of several what begins first.

        may_stop: otherwise what is found now does not count, and will not later.
        """
        if self.end is not None:
            return
        begin, self._num_searched = self._num_searched, len(text)
        places = [(text.find(string, max(0, begin - len(string) + 1)), string) for string in self.strings]
        found = [(place, string) for place, string in places if place >= 0 and may_stop]
        if found:
            place, self.found = min(found, key=lambda pair: pair[0])
            self.end = place + len(self.found) if self.is_kept else place

    def visible(self, text: str) -> str:
        """A text that goes on, without the end that could still be the beginning of a stop string."""
        longest = max(map(len, self.strings)) if self.strings and not self.is_kept else 1
        return text[: max(0, len(text) - (longest - 1))]
