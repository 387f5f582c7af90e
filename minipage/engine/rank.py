"""`python -m minipage.engine.rank RANK SIZE PORT`: a rank that `LLM(tensor_parallel_size=...)` has started."""

from __future__ import annotations

import sys

from minipage.engine.ranks import main

if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
