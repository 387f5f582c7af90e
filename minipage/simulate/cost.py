"""How long a step takes, by a roofline: bytes over bandwidth, operations over arithmetic, whichever takes longer.

A step computes T tokens of several sequences. On one of several devices, each of which has its share of all weights
and heads:

    products    2 * parameters * T operations, and every weight is read once, however many tokens there are
    attention   4 * layers * width operations for each pair of a token and one that it looks at; K and V of every
                token that is looked at are read, once for all who share its block: then it is in the second-level
                cache (40 MB on an A100; a layer of a prefix of 341 tokens has 7)
    all-reduce  twice a layer, T * hidden numbers
    overheads   what the host does, and the gaps between kernels

Where steps overlap, the host plans and launches one while the device computes the one before, so a step costs what
takes longer, host or device; otherwise both.

Decoding waits for the weights, which are read once for all: that is why batches pay (Williams, Waterman and Patterson,
"Roofline", 2009; for language models Pope et al., arXiv 2211.05102). Nothing here is fitted to a run of the engine.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.arguments import QUANTIZED
from minipage.attention.cache_size import SCALE_BYTES
from minipage.errors import ConfigurationError, require_positive
from minipage.memory import BlockPool
from minipage.memory.kv_groups import EVERYTHING
from minipage.model.architecture import Architecture
from minipage.scheduling import StepPlan
from minipage.simulate.machines import Machine, Overheads

GRANULE = 64  # bytes that a GPU's memory delivers at a time
RUN = 16  # bytes of a token that lie together in the paper's cache, [blocks, heads, head_size / 8, block_size, 8]


class Sizes(NamedTuple):
    """What a model costs, in numbers."""

    num_layers: int
    hidden_size: int  # of what ranks exchange
    num_heads: int  # of the queries
    num_kv_heads: int
    head_size: int
    num_parameters: int  # all of them, which lie in memory
    num_multiplied: int  # those that each token is multiplied with in every layer: no tables, and not the head's
    head_parameters: int  # of the matrix that makes logits, for tokens whose logits are wanted
    max_model_len: int
    windows: tuple[int | None, ...] = ()  # of each layer, if any of them sees the last tokens only

    @staticmethod
    def of(architecture: Architecture) -> Sizes:
        """From the shapes of its weights: no weight is needed."""
        weights = dict(architecture.weights())
        sizes = {name: math.prod(weight.shape) for name, weight in weights.items()}
        head_name = f"{architecture.head}.weight"  # often the table of the tokens
        layers = sum(sizes[name] for name in weights if not weights[name].is_table and name != head_name)
        head, total = sizes[head_name], sum(sizes.values())
        kv = architecture.kv
        hidden = next(weight.shape[1] for weight in weights.values() if len(weight.shape) == 2)
        return Sizes(
            kv.num_layers, hidden, architecture.num_heads, kv.num_kv_heads, kv.head_size, total, layers, head,
            architecture.max_model_len, kv.windows if any(kv.windows) else (),
        )  # fmt: skip

    @property
    def shares(self) -> tuple[tuple[float, int], ...]:
        """(share of the layers, window) of each kind of layers; () if all see everything."""
        counts = Counter(window or EVERYTHING for window in self.windows)
        return tuple((count / self.num_layers, window) for window, count in counts.items())


class Work(NamedTuple):
    """What a step computes, in numbers."""

    num_tokens: int
    num_requests: int
    num_sampled: int  # tokens whose logits are wanted
    num_read: float  # tokens whose K and V the memory delivers: what several chunks share, once
    num_pairs: float  # of a token and one that it looks at; where layers have windows, both are of the mean layer

    @staticmethod
    def of(plan: StepPlan, pool: BlockPool | None = None, shares: tuple[tuple[float, int], ...] = ()) -> Work:
        """pool: whose blocks may be shared. All that is in use is read in a step, so no more than that.

        shares: see Sizes; with windows nothing is taken to be shared.
        """
        num_tokens = num_requests = num_sampled = 0
        num_read = num_pairs = 0.0
        group = None
        for chunk in plan.chunks:
            if chunk.group is not group:  # chunks of one request follow one another
                group = chunk.group
                num_requests += 1
            start, count = chunk.start, chunk.num_tokens
            stop = start + count
            num_tokens += count
            if shares:
                num_read += sum(share * min(stop, window - 1 + count) for share, window in shares)
                num_pairs += sum(
                    share * (pairs(start, stop) - pairs(start - window, stop - window)) for share, window in shares
                )
            else:
                num_read += stop
                num_pairs += stop if count == 1 else pairs(start, stop)
            num_sampled += stop == len(chunk.seq.token_ids)
        if pool is not None and not shares:
            num_read = min(num_read, pool.num_used * pool.block_size)
        return Work(num_tokens, num_requests, num_sampled, num_read, num_pairs)


def pairs(start: int, stop: int) -> int:
    """Of each token from `start` on and those up to it; tokens before the first do not count."""
    start, stop = max(0, start), max(0, stop)
    return (stop * (stop + 1) - start * (start + 1)) // 2


@dataclass(frozen=True)
class CostModel:
    """The time of a step, of a model on `num_devices` machines.

    Args:
        weight_bytes: of a number of the layers' weights. With fewer than two the model is quantized, and as usual only
            its layers are: tables, the head and hidden states have two.
        kv_dtype: what K and V are kept as.
        run: bytes of a token's K that lie together, beside those of the next token in its block: with fewer than
            GRANULE of them in a block, the memory delivers what nobody wants. None: enough of them.
    """

    sizes: Sizes
    machine: Machine
    overheads: Overheads
    num_devices: int = 1
    weight_bytes: float = 2.0
    kv_dtype: Any = np.float16
    block_size: int = 16
    run: int | None = None

    def __post_init__(self) -> None:
        require_positive(num_devices=self.num_devices, block_size=self.block_size)
        num_heads, num_kv_heads, devices = self.sizes.num_heads, self.sizes.num_kv_heads, self.num_devices
        if num_heads % devices:
            raise ConfigurationError(
                f"{num_heads} heads cannot be shared by {devices} devices; choose a tensor_parallel_size that divides "
                "them."
            )
        if num_kv_heads % devices and devices % num_kv_heads:
            raise ConfigurationError(
                f"{num_kv_heads} heads of K and V cannot be shared by {devices} devices; choose a tensor_parallel_size "
                "that divides them, or that they divide."
            )

    @property
    def kv_bytes_per_token(self) -> int:
        """On one device. More devices than heads of K and V: each has one of them, and several have the same."""
        heads = max(1, self.sizes.num_kv_heads // self.num_devices)
        scale = SCALE_BYTES if self.kv_dtype in QUANTIZED else 0
        return (
            2 * self.sizes.num_layers * heads * (self.sizes.head_size * int(np.dtype(self.kv_dtype).itemsize) + scale)
        )

    @property
    def wide_bytes(self) -> float:
        """Of a number that is not quantized."""
        return max(2.0, self.weight_bytes)

    @property
    def weights_on_device(self) -> float:
        """Bytes of the weights on one device."""
        layers = self.sizes.num_multiplied
        rest = self.sizes.num_parameters - layers
        return (layers * self.weight_bytes + rest * self.wide_bytes) / self.num_devices

    def seconds(self, work: Work) -> float:
        """How long the step takes, if it is one of many that are alike."""
        host, device = self.host(work), self.device(work)
        return max(host, device) if self.overheads.overlaps else host + device

    def device(self, work: Work) -> float:
        return self.products(work) + self.attention(work) + self.all_reduce(work) + self.gaps()

    def host(self, work: Work) -> float:
        """To plan the step and to launch it."""
        overheads = self.overheads
        eager = 0.0 if self.is_graph(work) else self.sizes.num_layers * overheads.eager
        return overheads.step + overheads.request * work.num_requests + eager

    def is_graph(self, work: Work) -> bool:
        """As the runner decides it (worker/gpu/graphs.py)."""
        return work.num_sampled == work.num_tokens or work.num_tokens <= self.overheads.few_tokens

    def products(self, work: Work) -> float:
        sizes, share = self.sizes, 1 / self.num_devices
        read = sizes.num_multiplied * self.weight_bytes + sizes.head_parameters * self.wide_bytes
        reading = read * share / self.machine.bandwidth
        multiplied = sizes.num_multiplied * work.num_tokens + sizes.head_parameters * work.num_sampled
        return self._both(reading, 2 * multiplied * share / self.machine.flops)

    def attention(self, work: Work) -> float:
        sizes, share = self.sizes, 1 / self.num_devices
        wasted = 1.0 if self.run is None else max(1.0, GRANULE / (self.run * self.block_size))
        reading = work.num_read * self.kv_bytes_per_token * wasted / self.machine.bandwidth
        operations = 4 * sizes.num_layers * sizes.num_heads * sizes.head_size * work.num_pairs * share
        return self._both(reading, operations / self.machine.flops)

    def all_reduce(self, work: Work) -> float:
        """A ring: each device sends and receives nearly twice what there is."""
        if self.num_devices == 1:
            return 0.0
        sent = 2 * (1 - 1 / self.num_devices) * work.num_tokens * self.sizes.hidden_size * self.wide_bytes
        return 2 * self.sizes.num_layers * (self.machine.link_seconds + sent / self.machine.link_bandwidth)

    def gaps(self) -> float:
        """Between kernels."""
        return self.sizes.num_layers * self.overheads.kernels_per_layer * self.overheads.kernel

    def copies(self, num_blocks: int) -> float:
        """Copies of blocks within the device's memory: read and written."""
        return 2 * num_blocks * self.block_size * self.kv_bytes_per_token / self.machine.bandwidth

    def swaps(self, num_blocks: int) -> float:
        """Copies of blocks to the host's memory or back: K and V of every layer are a copy each, as in the paper."""
        num_copies = 2 * self.sizes.num_layers * num_blocks
        moved = num_blocks * self.block_size * self.kv_bytes_per_token
        return num_copies * self.machine.copy_seconds + moved / self.machine.host_bandwidth

    def recomputation(self, num_tokens: int) -> float:
        """What it takes to compute a text of this many tokens again, in a step of its own."""
        return self.seconds(Work(num_tokens, 1, 1, num_tokens, num_tokens * (num_tokens + 1) // 2))

    def _both(self, reading: float, computing: float) -> float:
        power = self.machine.overlap
        if not reading or not computing:
            return reading + computing
        longer, shorter = max(reading, computing), min(reading, computing)
        return float(longer * (1 + (shorter / longer) ** power) ** (1 / power))
