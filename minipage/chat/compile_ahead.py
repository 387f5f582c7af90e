"""On a new machine, compile the kernel of decodes while the model is loaded, in a process of its own.

numba compiles one kernel at a time, each for seconds, and in the order in which they are needed:

    here      load the model ─▶ compile the layers ─▶ compile prefill ─▶ (compile decode) ─▶ first word
    there     compile decode ─▶ on disk ───────────────────────────────────▲

Whoever comes first writes the machine code to numba's cache on disk, and the other finds it there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minipage.attention.cpu import paged_attention
from minipage.attention.decode import decode
from minipage.simd.options import IN_PYTHON


@contextmanager
def decode_compiled_ahead() -> Iterator[None]:
    """Within the block the other process may run; it is ended with it."""
    if not is_worth_while():
        yield
        return
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.kill()  # usually it has ended long ago
        process.wait()


def is_worth_while() -> bool:
    """Whether there is a second core, and no machine code yet."""
    folder = None if IN_PYTHON else decode.stats.cache_path
    return folder is not None and (os.cpu_count() or 1) > 1 and not any(Path(folder).glob("decode.decode-*.nbc"))


def compile_decode() -> None:
    """Attend from one token to itself: numbers of the same types as in an engine make the same machine code."""
    one_slot = np.zeros((1, 1, 1, 64), np.float32)  # [num_blocks, block_size, num_kv_heads, head_size]
    table, length, starts = (np.array(each, np.int32) for each in ([[0]], [1], [0, 1]))
    paged_attention(one_slot[0], one_slot, one_slot, table, length, starts, 1.0)


if __name__ == "__main__":
    compile_decode()
