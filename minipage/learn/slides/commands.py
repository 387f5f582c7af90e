"""`learn slides`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_slides(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", metavar="DIR", help="a folder for the deck and the pictures")


def slides(args: argparse.Namespace) -> int:
    from minipage.learn.slides.deck import write_deck
    from minipage.trace.playing.scenarios import SCENARIOS

    def tell(name: str) -> None:
        print(f"story {[*SCENARIOS].index(name) + 1} of {len(SCENARIOS)}: {name}", file=sys.stderr)

    deck = write_deck(Path(args.folder), tell)
    print(f"wrote {deck}; open it in a browser. S opens the speaker's view, F fills the screen.")
    return 0
