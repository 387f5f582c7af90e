"""A model on one's own devices, in bytes.

a device's memory
├── not used: 1 - gpu_memory_utilization
├── weights: an equal share of them
├── a step: what the largest one needs for a moment
├── other: the driver and its libraries
└── K and V: what is left, in blocks
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.cache_size import read_bytes
from minipage.attention.quantize import kv_dtype
from minipage.errors import ConfigurationError, require_positive, shown
from minipage.memory.kv_groups import EVERYTHING, KVGroups, blocks_held
from minipage.model.architecture import Architecture
from minipage.simulate.configs import architecture_of, find_settings, refuse_quantized
from minipage.simulate.cost import CostModel, Sizes
from minipage.simulate.machines import GRAPHS, ON_CPU, GiB, Machine, find_machine

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
OTHER = 0.6 * GiB  # a CUDA context and libraries: assumed, between 0.3 and 1 on what people report
DEFAULT_LONGEST_RUN = 256


class Budget(NamedTuple):
    """Where the memory of one device goes, in bytes."""

    total: float
    unused: float  # because of gpu_memory_utilization
    weights: float
    step: float  # for a moment, in the largest step
    other: float
    kv: float  # what is left for K and V


@dataclass(frozen=True)
class Deployment:
    """What is planned. The names are those of vLLM's options."""

    model: str
    gpu: str = "H100"
    memory: str | None = None  # of a device, in place of the GPU's own
    kv_cache_memory: str | None = None  # for K and V on each device, in place of what is left
    num_blocks: int | None = None  # in place of both
    tensor_parallel_size: int = 1
    dtype: str = "auto"  # of the weights: bfloat16, unless config.json says that they are quantized
    kv_cache_dtype: str = "auto"
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_num_seqs: int = DEFAULT_LONGEST_RUN
    max_num_batched_tokens: int = 2048

    def __post_init__(self) -> None:
        require_positive(
            block_size=self.block_size, tensor_parallel_size=self.tensor_parallel_size, max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )  # fmt: skip
        if isinstance(self.dtype, str) and self.dtype == "auto":
            refuse_quantized(*self.settings)
            object.__setattr__(self, "dtype", "bfloat16")
        if not isinstance(self.dtype, str) or self.dtype not in WEIGHT_BYTES:
            raise ConfigurationError(f"dtype is {shown(self.dtype)}; it must be one of {', '.join(WEIGHT_BYTES)}.")
        if not isinstance(self.kv_cache_dtype, str) or self.kv_cache_dtype != "auto":
            kv_dtype(self.kv_cache_dtype)  # which says what is wrong
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigurationError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be a share, above 0 and at most 1."
            )
        if self.num_blocks is not None:
            require_positive(num_blocks=self.num_blocks)
        if self.max_model_len is not None:
            require_positive(max_model_len=self.max_model_len)
            if self.max_model_len > (context := self.architecture.max_model_len):
                raise ConfigurationError(
                    f"max_model_len is {self.max_model_len:,}; it must be at most {self.model}'s context, {context:,}."
                )

    @cached_property
    def settings(self) -> tuple[Path, dict[str, Any]]:
        """Of its model, and where they are said: the hub is asked once."""
        return find_settings(self.model)

    @property
    def architecture(self) -> Architecture:
        return architecture_of(*self.settings)

    @property
    def groups(self) -> KVGroups:
        """Which layers share a block table: with windows there are several, and a block is of the layers of one."""
        kv = self.architecture.kv
        return KVGroups.of(kv.num_layers, kv.windows)

    @property
    def has_windows(self) -> bool:
        return self.groups.windows != (EVERYTHING,)

    @property
    def machine(self) -> Machine:
        machine = find_machine(self.gpu)
        if self.memory is None:
            return machine
        return Machine(**{**machine.__dict__, "memory": float(read_bytes(self.memory, "memory"))})

    @property
    def is_gpu(self) -> bool:
        return self.machine.link_bandwidth > 0

    @property
    def longest(self) -> int:
        """max_model_len, or the model's context."""
        return self.max_model_len or self.architecture.max_model_len

    @property
    def cost(self) -> CostModel:
        """How long steps take on it."""
        computed = "bfloat16" if self.dtype in ("fp8", "int8", "int4") else self.dtype
        kept_as: Any = kv_dtype(computed if self.kv_cache_dtype == "auto" else self.kv_cache_dtype)
        overheads = GRAPHS if self.is_gpu else ON_CPU
        return CostModel(
            Sizes.of(self.architecture), self.machine, overheads, self.tensor_parallel_size, WEIGHT_BYTES[self.dtype],
            kept_as, self.block_size,
        )  # fmt: skip

    def budget(self) -> Budget:
        cost, total = self.cost, self.machine.memory
        weights, step = cost.weights_on_device, self._step_bytes()
        other = OTHER if self.is_gpu else 0.0
        kv = self.gpu_memory_utilization * total - weights - step - other
        if self.kv_cache_memory is not None:
            kv = float(read_bytes(self.kv_cache_memory, "kv_cache_memory"))
        return Budget(total, (1 - self.gpu_memory_utilization) * total, weights, step, other, kv)

    @property
    def block_bytes(self) -> int:
        """Of K and V in a block, on each device."""
        layers = self.groups.num_layers
        return self.cost.kv_bytes_per_token * self.block_size * layers // self.architecture.kv.num_layers

    def blocks_of(self, num_tokens: int) -> int:
        """The most blocks that a text of this length holds: in layers with a window, those that the window reaches."""
        at_once = self.max_num_batched_tokens
        return sum(blocks_held(num_tokens, window, self.block_size, at_once) for window in self.groups.windows)

    def longest_that_fits(self) -> int:
        """Tokens of the longest text that the KV cache can hold, up to max_model_len."""
        return bisect_right(range(self.longest + 1), self.blocks(), key=self.blocks_of) - 1

    def blocks(self) -> int:
        """How many blocks the KV cache has. Raises ConfigurationError if there is not one."""
        if self.num_blocks is not None:
            return self.num_blocks
        budget, block = self.budget(), self.block_bytes
        if budget.kv < block and self.kv_cache_memory is not None:
            raise ConfigurationError(
                f"kv_cache_memory is {str(self.kv_cache_memory)!r}, and a block of {self.block_size} tokens takes "
                f"{block:,} bytes. Give it more."
            )
        if budget.kv < block:
            raise ConfigurationError(
                f"{self.model} leaves no room for a block of {self.block_size:,} tokens, {block:,} bytes of K and V: "
                f"of {budget.total / GiB:.1f} GiB, weights take {budget.weights / GiB:.1f}, a step "
                f"{budget.step / GiB:.1f}, other things {budget.other / GiB:.1f}, and {budget.unused / GiB:.1f} are "
                "not to be used. Take a larger GPU, raise tensor_parallel_size or gpu_memory_utilization, or keep the "
                "weights in fewer bytes."
            )
        return int(budget.kv // block)

    def concurrency(self) -> float:
        """How many requests of max_model_len fit at once, by the rule of vLLM's log."""
        return self.blocks() / self.blocks_of(self.longest)

    def concurrency_line(self) -> str:
        """As vLLM says it when it starts."""
        return f"Maximum concurrency for {self.longest:,} tokens per request: {self.concurrency():.2f}x"

    def refusal(self) -> str | None:
        """What vLLM would say instead of starting, if not even one such request fits."""
        tokens = self.longest_that_fits()
        if tokens == self.longest:
            return None
        return (
            f"The model's max seq len ({self.longest:,}) is larger than the maximum number of tokens that can be "
            f"stored in KV cache ({tokens:,}). Set max_model_len to {tokens:,} or less, or make room for more blocks."
        )

    def _step_bytes(self) -> float:
        """Of the largest step: two results of the widest matrix, hidden states, and logits in two types. Estimated."""
        weights = dict(self.architecture.weights())
        widest = max(w.shape[1] for w in weights.values() if len(w.shape) == 2 and not w.is_table)
        sizes = self.cost.sizes
        number = max(2.0, float(np.dtype(np.float32).itemsize) if self.dtype == "float32" else 2.0)
        tokens = min(self.max_num_batched_tokens, self.max_num_seqs * self.longest)
        hidden = tokens * (2 * widest / self.tensor_parallel_size + 6 * sizes.hidden_size) * number
        logits = min(self.max_num_seqs, tokens) * self.architecture.vocab_size * (number + 4)
        return hidden + logits
