"""`LLM(kv_offloading_size=GiB)`: a tier below the pool for blocks that are evicted (memory/offload.py).

It is in the memory of the host, or on a CPU in a file, `kv_offloading_path`. On a GPU blocks travel while it computes:
whoever waits for blocks that are on their way is admitted when they have come (worker/gpu/offload.py).

Like speculation, `Offloading` stands between an engine and its phases; so steps do not overlap (overlap.py).
"""

from __future__ import annotations

import secrets
import sys
import warnings
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minipage.engine.phases import stand_between
from minipage.engine.stats import Metric
from minipage.errors import ConfigurationError, shown
from minipage.memory import PrefixCache
from minipage.memory.offload import offload
from minipage.model.architecture import Architecture
from minipage.model.stored_weights import Weights, hash_of
from minipage.scheduling import SequenceGroup, StepPlan
from minipage.scheduling.scheduler import Admission
from minipage.worker.offload import FileStore, HostStore, is_foreign

if TYPE_CHECKING:
    from minipage.engine.engine import Engine

GIB = 2**30
FORMAT = 1  # of the file; another one, when what is in it means something else
METRICS = (  # in `LLM.stats()` and /metrics, if there is a tier
    Metric("vllm:external_prefix_cache_queries", "counter", "prompt tokens that the pool did not know, nor the next"),
    Metric("vllm:external_prefix_cache_hits", "counter", "those of them that came back from the tier below it"),
)


class Offloading:
    """The tier of one engine; made before anything else watches its phases.

    Args:
        size: GiB.
        path: of the file, or None.
        origin: what K and V depend on: the architecture, the weights, and the options of `load_runner`.

    Raises:
        ConfigurationError: there can be no such tier.
    """

    def __init__(
        self,
        engine: Engine,
        size: float | None,
        path: str | Path | None,
        origin: tuple[Architecture, Weights, dict[str, Any]],
    ) -> None:
        self.cache: Any = engine.scheduler.prefix_cache
        if not isinstance(self.cache, PrefixCache):
            raise ConfigurationError(
                "kv_offloading_size is for what minipage's own prefix cache can find: set enable_prefix_caching, and "
                "hand in no scheduler with another."
            )
        self.store = make_store(engine, size, path, origin)
        self.cache._secret = getattr(self.store, "secret", self.cache._secret)
        offload(self.cache, self.store, self.store.held())
        self.engine = engine
        self.num_hit_tokens = 0
        self._phases = stand_between(engine, self, "schedule", "copy", "stats", "reset_stats")
        self._admission = engine.scheduler.admission
        engine.scheduler.admission = self.admission  # type: ignore[method-assign]

    def schedule(self) -> StepPlan:
        plan: StepPlan = self._phases["schedule"]()
        for chunk in plan.chunks if self.cache.came_back else ():
            parts = getattr(chunk.seq.block_table, "parts", [chunk.seq.block_table])
            came_back = [self.cache.came_back.intersection(part.blocks) for part in parts]
            if chunk.start == chunk.group.num_cached_tokens and not chunk.group.num_preemptions:  # as prefix hits count
                self.num_hit_tokens += max(map(len, came_back)) * self.engine.block_pool.block_size
            self.cache.came_back.difference_update(*came_back)
        return plan

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        """Others go on while blocks are on their way to a group."""
        if self.engine.scheduler.running and any(self.store.is_coming(block) for block in cached):
            return Admission.LATER
        return self._admission(group, cached)

    def copy(self, plan: StepPlan) -> None:
        self.store.before_writing()
        self._phases["copy"](plan)

    def stats(self) -> dict[str, Any]:
        """The pool's hits are those that were there; the tier is asked for all others."""
        numbers: dict[str, Any] = self._phases["stats"]()
        numbers["vllm:prefix_cache_hits"] -= self.num_hit_tokens
        queried = numbers["vllm:prefix_cache_queries"] - numbers["vllm:prefix_cache_hits"]
        return numbers | {METRICS[0].name: queried, METRICS[1].name: self.num_hit_tokens}

    def reset_stats(self) -> None:
        self._phases["reset_stats"]()
        self.num_hit_tokens = 0


def make_store(
    engine: Engine, size: float | None, path: str | Path | None, origin: tuple[Architecture, Weights, dict[str, Any]]
) -> HostStore:
    """The memory of a tier. Raises ConfigurationError."""
    cache = engine.runner.kv_cache
    if size is None:
        raise ConfigurationError("kv_offloading_path has no effect without kv_offloading_size; give both.")
    if not isinstance(size, Real) or isinstance(size, bool) or not 0 < size < 2**30:
        raise ConfigurationError(f"kv_offloading_size is {shown(size)}; it must be a number of GiB, above 0.")
    if int(size * GIB) < 2 * cache.nbytes // cache.k.shape[1]:
        raise ConfigurationError(f"kv_offloading_size is {shown(size)} GiB, too small for two blocks. Give more.")
    if not engine.runner.is_alone:
        raise ConfigurationError("kv_offloading_size works in one process; leave out tensor_parallel_size.")
    if not isinstance(cache.k, np.ndarray):
        if path is not None:
            raise ConfigurationError("kv_offloading_path is for device='cpu'; on a GPU the tier is in memory.")
        return pinned_store(engine, int(size * GIB))
    if path is None:
        return HostStore(cache, int(size * GIB))
    if is_foreign(Path(path)):
        warnings.warn(
            f"kv_offloading_path is {str(path)!r}, which is no file of minipage, or a damaged one. It is left as it "
            "is, and nothing is offloaded. Give another path, or remove it.",
            RuntimeWarning,
            stacklevel=4,
        )
        return HostStore(cache, 0)
    try:
        return FileStore(cache, int(size * GIB), Path(path), fingerprint(engine, *origin), secrets.token_bytes(32))
    except OSError as error:
        raise ConfigurationError(
            f"kv_offloading_path is {str(path)!r}, where there can be no file of {shown(size)} GiB ({error}). Give "
            "another path, or a smaller kv_offloading_size."
        ) from error


def pinned_store(engine: Engine, num_bytes: int) -> HostStore:
    if type(engine.runner.kv_cache.k).__module__ != "torch":
        raise ConfigurationError("kv_offloading_size on a GPU needs PyTorch; leave out arrays.")
    from minipage.worker.gpu.offload import PinnedStore  # needs PyTorch

    return PinnedStore(engine.runner.kv_cache, num_bytes, engine.block_pool)


def fingerprint(engine: Engine, architecture: Architecture, weights: Weights, how: dict[str, Any]) -> bytes:
    """32 bytes that say of which engine's K and V a file is: others' are as good as none."""
    arrays = [(array.dtype, array.shape[:1], array.shape[2:]) for array in engine.runner.kv_cache.arrays]
    facts = FORMAT, sys.byteorder, architecture, hash_of(weights), sorted(how.items()), engine.runner.groups, arrays
    return sha256(repr(facts).encode()).digest()
