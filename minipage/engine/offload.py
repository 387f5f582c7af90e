"""`LLM(kv_offloading_size=GiB)`: a tier below the pool for blocks that are evicted (memory/offload.py).

It is in the memory of the host, or on a CPU in a file, `kv_offloading_path`. On a GPU blocks travel while it computes:
whoever waits for blocks that are on their way is admitted when they have come (worker/gpu/offload.py).

Like speculation, `Offloading` stands between an engine and its phases; so steps do not overlap (overlap.py).
"""

from __future__ import annotations

from hashlib import blake2b
from numbers import Real
from typing import Any

from array_api_compat import is_numpy_array, is_torch_array

from minipage.engine.engine import Engine
from minipage.engine.phases import stand_between
from minipage.engine.stats import Metric
from minipage.errors import ConfigurationError, shown
from minipage.memory import PrefixCache
from minipage.memory.offload import offload
from minipage.model.stored_weights import hash_of
from minipage.scheduling import Admission, SequenceGroup, StepPlan
from minipage.worker.offload import Store

GIB = 2**30
METRICS = (  # in `LLM.stats()` and /metrics, if there is a tier
    Metric("vllm:external_prefix_cache_queries", "counter", "prompt tokens that the pool did not know, nor the next"),
    Metric("vllm:external_prefix_cache_hits", "counter", "those of them that came back from the tier below it"),
)
QUERIES, HITS = (metric.name for metric in METRICS)


class Offloading:
    """The tier of one engine; made before anything else stands between it and its phases.

    Args:
        size: GiB.
        path: of the file, or None.
        origin: what K and V depend on: the architecture, the weights, and the options of `load_runner`.

    Raises:
        ConfigurationError: there can be no such tier.
    """

    def __init__(self, engine: Engine, size: Any, path: Any, origin: Any) -> None:
        self.engine = engine
        self.store = make_store(engine, size, path, origin)
        self.cache: Any = engine.scheduler.prefix_cache
        offload(self.cache, self.store)
        self._phases = stand_between(engine, self, "copy", "stats")
        self._phases |= stand_between(engine.scheduler, self, "admission")

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        """Others go on while blocks are on their way to a group. What came back counts as prefix hits do: once."""
        if self.engine.scheduler.running and any(map(self.store.is_coming, cached)):
            return Admission.LATER
        answer: Admission = self._phases["admission"](group, cached)
        if answer is Admission.NOW:
            # The first 32 bytes of a hash are of the text, others of the KV cache group.
            hashes = {self.cache.came_back.pop(block, b"")[:32] for block in cached} - {b""}
            if not (group.was_admitted or group.to_score):
                self.engine._stats.counters[HITS] += len(hashes) * self.engine.block_pool.block_size
        return answer

    def copy(self, plan: StepPlan) -> None:
        self.store.before_writing()
        self._phases["copy"](plan)

    def stats(self) -> dict[str, Any]:
        """The pool's hits are those that were there; the tier is asked for all others."""
        numbers: dict[str, Any] = self._phases["stats"]()
        hits = self.engine._stats.counters[HITS]
        numbers["vllm:prefix_cache_hits"] -= hits
        return numbers | {QUERIES: numbers["vllm:prefix_cache_queries"] - numbers["vllm:prefix_cache_hits"], HITS: hits}


def make_store(engine: Engine, size: Any, path: Any, origin: Any) -> Any:
    """The memory of a tier. Raises ConfigurationError."""
    cache, prefix_cache = engine.runner.kv_cache, engine.scheduler.prefix_cache
    if not isinstance(prefix_cache, PrefixCache):
        raise ConfigurationError("kv_offloading_size needs minipage's own prefix cache: set enable_prefix_caching.")
    if not engine.runner.is_alone:
        raise ConfigurationError("kv_offloading_size works in one process; leave out tensor_parallel_size.")
    least = 2 * cache.nbytes / cache.k.shape[1] / GIB
    if isinstance(size, bool) or not isinstance(size, Real) or not least <= size < 2**30:
        what = f"it must be a number of GiB, also with kv_offloading_path; two blocks take {least:.2g}"
        raise ConfigurationError(f"kv_offloading_size is {shown(size)}; {what}.")
    num_bytes = int(float(size) * GIB)
    if not is_numpy_array(cache.k):
        if path is not None or not is_torch_array(cache.k):
            raise ConfigurationError("on a GPU a tier is in PyTorch's memory; leave out kv_offloading_path and arrays.")
        from minipage.worker.gpu.offload import PinnedStore  # needs PyTorch

        return PinnedStore(cache, num_bytes, engine.block_pool)
    if path is not None:  # then hashes have to be the same in the next engine, if K and V are
        architecture, weights, how = origin
        facts = repr((architecture, hash_of(weights), how)).encode()
        prefix_cache._secret = blake2b(facts, digest_size=32).digest()
    try:
        return Store(cache, num_bytes, path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        what = f"it must be the name of a file, and there can be no file of {shown(size)} GiB ({error})"
        raise ConfigurationError(f"kv_offloading_path is {shown(path)}; {what}: give another, or less.") from error
