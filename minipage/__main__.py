"""`python -m minipage`."""

import sys

from minipage.cli import main

if __name__ == "__main__":
    sys.exit(main())
