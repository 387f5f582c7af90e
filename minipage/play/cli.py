"""`minipage play` on the command line; what takes long to import is imported when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from minipage.cli_options import PLAY, Defaults, add_options, given
from minipage.errors import ConfigurationError

OTHERWISE: Defaults = {
    "block_size": 4,
    "num_blocks": 24,
    "memory": None,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 16,
    "swap_space": "16MiB",
}


def add_play(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.add_argument("--port", type=int, default=0, metavar="N", help="on 127.0.0.1 (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser; the address is printed")
    parser.add_argument("--mine", metavar="DIR", help="with the parts that you wrote there (see `learn`)")
    add_options(parser.add_argument_group("the engine"), PLAY, defaults | OTHERWISE)
    parser.set_defaults(command=run_play)


def run_play(args: argparse.Namespace) -> None:
    from minipage.trace.playing.spinner import spinner

    with spinner("starting"):
        try:
            from minipage.play.main import run
        except ImportError as error:
            message = f"{error}. To play takes more than the engine does: pip install 'minipage[serve]'."
            raise ConfigurationError(message) from error
    options: dict[str, Any] = {"port": args.port, "no_browser": args.no_browser}
    if args.mine is not None:
        from minipage.learn.your_engine import Mine

        mine = Mine(args.mine)
        print(*mine.lines(), "", sep="\n")
        options |= {"build": mine.build, "note": mine.note, "blamed": mine.blamed}
    run(given(args, PLAY), **options)
