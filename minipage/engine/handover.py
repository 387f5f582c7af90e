"""Disaggregated prefill: one engine computes a prompt, another says how it goes on.

A long prompt keeps a device busy for a while, and all texts that are being written wait for it. So production systems
let some engines compute prompts only, and others only write (Zhong et al., DistServe, arXiv 2401.09670; Patel et al.,
Splitwise, arXiv 2311.18677). What travels is a block table, and the blocks that it names:

    first engine     table [ 7 | 1 | 3 ]  17 tokens        hand_over(llm, prompt)
                            ▼   ▼   ▼
    shared memory         [ 0 | 1 | 2 ]   K and V          Handover: 17 tokens, 3 blocks, where they are
                            ▼   ▼   ▼
    second engine    table [ 4 | 0 | 9 ]                   take_over(llm, handover)

The second engine has the blocks elsewhere, and that is all that differs: a block table is what makes K and V portable.
It publishes them in its prefix cache, under hashes of its own, and a request with this prompt finds them. What it
still computes is the last token, whose logits are wanted; and without prefix_match_unit=1 all of the last block.

Both engines have the same model, dtype and block size. vLLM calls what travels `kv_transfer_params`, and has connectors
for GPUs of other machines; here it is memory that two processes of one machine share.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from minipage.attention import KVCache
from minipage.engine.engine import Engine
from minipage.engine.prompts import Prompt
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.memory import BlockTable, PrefixCache
from minipage.sampling import SamplingParams
from minipage.worker.offload import HostStore, row_size


@dataclass(frozen=True)
class Handover:
    """A block table on its way; it can be pickled. Its K and V are in shared memory, until `discard`."""

    token_ids: list[int]  # of the prompt
    num_tokens: int  # those of them whose K and V are there
    num_blocks: int
    num_bytes: int
    memory: str  # the name of the shared memory
    sizes: str  # what both engines must have in common

    def discard(self) -> None:
        """Give the memory back, whether somebody took over or not."""
        memory = SharedMemory(self.memory)
        memory.close()
        memory.unlink()


class SharedStore(HostStore):
    """Slots in shared memory: a new one, or one that has this name."""

    def __init__(self, cache: KVCache, num_blocks: int, name: str | None = None) -> None:
        self.memory = SharedMemory(name, create=name is None, size=num_blocks * row_size(cache))
        super().__init__(cache, num_blocks * row_size(cache))

    def allocate(self) -> Any:
        rows = np.ndarray((self.num_slots, self.row_size), np.uint8, self.memory.buf)  # [num_slots, row_size]
        if isinstance(self.cache.k, np.ndarray):
            return rows
        import torch  # the cache is of its tensors, on a GPU

        return torch.from_numpy(rows)

    def close(self) -> None:
        del self.rows  # which is a view of the memory
        self.memory.close()


def hand_over(llm: Engine, prompt: Prompt) -> Handover:
    """Compute a prompt, and copy its blocks to shared memory.

    Raises:
        InvalidRequestError: it cannot be served.
        ConfigurationError: the model has sliding windows, and so no table that holds all of a prompt.
    """
    check(llm)
    request_id = llm.add_request(prompt, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    request = llm.requests[request_id]
    seq = request.group.leader
    while not seq.num_output_tokens:
        if request.finished:
            raise InvalidRequestError(f"the prompt could not be computed: {request.error or request.ended_by}.")
        llm.step()
    with llm._changes.lock:  # now all of the prompt is written, and the table is still there
        token_ids, blocks = seq.token_ids[: seq.num_prompt_tokens], list(seq.block_table)
        store = SharedStore(llm.kv_cache, len(blocks))
        for slot, block in enumerate(blocks):
            store.save(slot, b"", block)
        handover = Handover(
            token_ids, len(token_ids), len(blocks), len(blocks) * store.block_size, store.memory.name, sizes(llm)
        )
        store.close()
    llm.abort(request_id)
    return handover


def take_over(llm: Engine, handover: Handover) -> int:
    """Let the prefix cache of an engine find what another one has computed.

    Returns how many blocks it has now: all that there are, or as many as are free.

    Raises ConfigurationError if it has no prefix cache, or is an engine of another kind.
    """
    check(llm)
    cache = llm.scheduler.prefix_cache
    if not isinstance(cache, PrefixCache):
        raise ConfigurationError("what is handed over is found by the prefix cache: set enable_prefix_caching.")
    if sizes(llm) != handover.sizes:
        raise ConfigurationError(f"this engine has {sizes(llm)}, but what is handed over has {handover.sizes}.")
    with llm._changes.lock:
        pool = llm.block_pool
        num_tokens = min(handover.num_tokens, pool.num_free * pool.block_size)
        table = BlockTable(pool)
        table.append(num_tokens)
        store = SharedStore(llm.kv_cache, handover.num_blocks, handover.memory)
        for slot, block in enumerate(table):
            store.load(slot, b"", block)
        store.close()
        cache.publish(table, handover.token_ids)
        num_blocks = len(table)
        table.free()  # they stay, and are found
    return num_blocks


def check(llm: Engine) -> None:
    if llm.runner.groups.parts != (None,):
        raise ConfigurationError(
            "a model with sliding windows has several tables, of which none holds all of a prompt."
        )


def sizes(llm: Engine) -> str:
    """What must be the same in both engines, in words. That the weights are, whoever starts them sees to."""
    arrays = [f"{tuple(array.shape[2:])} {array.dtype}".replace("torch.", "") for array in llm.kv_cache.arrays]
    return f"blocks of {llm.block_pool.block_size} tokens, {llm.kv_cache.k.shape[0]} layers of {', '.join(arrays)}"
