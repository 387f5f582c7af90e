"""How numba compiles the loops over K and V, and what its threads do while they wait."""

from __future__ import annotations

import os
from typing import Any

import numba

# Threads that wait for work shall sleep, but not at once: to wake one takes some 75 us. By default GNU OpenMP lets them
# spin for long, and they take the cores from others that compute (NumPy's threads, too): on two busy cores, steps were
# measured ten times slower. A thousand turns are some 20 us. Both are read at the first call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Sums may be reordered (that is what lets them use vector instructions) and multiplications fused with additions;
# infinities must keep their meaning, for `highest` starts at one.
options: Any = {"cache": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
# Only the loops that say `prange` shall be shared among the threads, not every NumPy expression too.
expressions = ["comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil"]
compiled: Any = numba.njit(**options)
compiled_parallel: Any = numba.njit(**options, parallel=dict.fromkeys(expressions, False))  # type: ignore[call-overload]
