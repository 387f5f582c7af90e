"""`python -m minipage`, and the command `minipage`."""

import sys


def start() -> int:
    """Run one command and return its exit code."""
    try:
        from minipage.cli import main

        return main()
    except KeyboardInterrupt:  # so soon that main was not there yet to answer it
        return 130


if __name__ == "__main__":
    sys.exit(start())
