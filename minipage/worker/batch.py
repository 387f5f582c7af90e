"""One step's work as flat arrays: what the scheduler planned, in the form that the model and the kernels take.

    chunks           A: tokens 0-3          B: token 9   C: tokens 4-5
    token_ids        [ a0  a1  a2  a3       b9           c4  c5 ]
    positions        [ 0   1   2   3        9            4   5  ]
    slot_mapping     [ where each of them is written in the KV cache ]
    query_start_loc  [ 0                    4            5        7 ]

No padding, and no difference between a prompt and a decode: each sequence brings as many tokens as it likes.

The model computes attention through a batch, and three things have a name there, from the outside to the inside:

    attend_with      makes an `attend` of a batch, a KV cache and kernels; `paged_attend` does so with a CPU's kernels
    attend           is what the model calls in each layer, with q, k and v and nothing else (its type: `Attend`)
    paged_attention  is the kernel that it calls, with q, blocks and block tables (its type: `PagedAttention`)

Shapes: T tokens in the batch, H heads of q and KH of K and V, each of D numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from minipage.attention.arguments import FLOATS
from minipage.attention.kv_cache import KVCache, write_kv
from minipage.errors import KernelArgumentError
from minipage.memory.kv_groups import KVGroups
from minipage.model.architecture import Array, Attend
from minipage.scheduling import Chunk
from minipage.simd.arrays import Floats, Integers

PagedAttention = Callable[..., Floats]  # what paged_attention is; see minipage/attention/arguments.py
BlocksOf = Callable[[int], Sequence[Any]]


class Batch(NamedTuple):
    token_ids: Integers  # [T]
    positions: Integers  # [T], of each token in its own sequence
    slot_mapping: Integers  # [T]
    block_tables: Integers  # [num_seqs, max_blocks], padded with 0
    context_lens: Integers  # [num_seqs], the tokens of this step included
    query_start_loc: Integers  # [num_seqs + 1]
    sampled_rows: Integers  # [num_sampled], rows of the tokens whose logits are wanted


def make_batch(chunks: Sequence[Chunk], part: int | None = None) -> Batch:
    """Lay the chunks of a StepPlan one after the other; there must be at least one.

    part: of sequences with several block tables (memory/kv_groups.py), which of them.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    query_start_loc = [0]
    context_lens = []
    sampled_rows = []
    tables = []
    for chunk in chunks:
        table = chunk.seq.block_table if part is None else cast(Any, chunk.seq.block_table).parts[part]
        stop = chunk.start + chunk.num_tokens
        token_ids += chunk.token_ids
        positions += range(chunk.start, stop)
        slot_mapping += table.slot_mapping(chunk.start, stop)
        query_start_loc.append(len(token_ids))
        context_lens.append(stop)
        tables.append(list(table))
        sampled_rows += [len(token_ids) - (stop - position) for position, _ in chunk.rows]
    max_blocks = max(map(len, tables))
    return Batch(
        token_ids=np.array(token_ids, np.int64),
        positions=np.array(positions, np.int64),
        slot_mapping=np.array(slot_mapping, np.int64),
        block_tables=np.array([table + [0] * (max_blocks - len(table)) for table in tables], np.int32),
        context_lens=np.array(context_lens, np.int32),
        query_start_loc=np.array(query_start_loc, np.int32),
        sampled_rows=np.array(sampled_rows, np.int64),
    )


class Kernels(NamedTuple):
    """What attention is computed with, and how the model's arrays get there and back."""

    write_kv: Callable[..., None]  # see minipage/attention/kv_cache.py
    paged_attention: PagedAttention
    to_kernels: Callable[..., Any]  # an array of the model, as the kernels take it; with a cache: K or V for it
    from_kernels: Callable[[Any, Array], Array]  # what they return, in the library and dtype of q


def paged_attend(batch: Batch, cache: KVCache, paged_attention: PagedAttention) -> Attend:
    """`attend_with`, given the kernels of a CPU, for a model whose layers share one block table."""
    kernels = Kernels(write_kv, paged_attention, as_numpy, like_q)
    return attend_with(kernels, [batch], cache.at_place, KVGroups.of(len(cache.k)))


def attend_with(kernels: Kernels, batches: Sequence[Batch], blocks_of: BlocksOf, kv_groups: KVGroups) -> Attend:
    """The attention that the model is given: write the new K and V into their slots, then attend through the tables.

    Args:
        batches: as the kernels take them; one for each KV cache group, with its block tables.
        blocks_of: (place of a layer in its KV cache group) -> its K and V, each [num_blocks, block_size, KH, D], and if
            they are quantized their scales, each [num_blocks, block_size, KH].
        kv_groups: of each layer, which group it belongs to, and its place there.
    """

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        kv_group, place, options = kv_groups.layers[layer]
        batch = batches[kv_group]
        k_cache, v_cache, *scales = blocks_of(place)
        new = kernels.to_kernels(k, k_cache), kernels.to_kernels(v, v_cache)  # each [T, KH, D]
        kernels.write_kv(*new, k_cache, v_cache, batch.slot_mapping, *scales)
        mixed = kernels.paged_attention(  # of each token: the V of all that it sees, mixed
            kernels.to_kernels(q), k_cache, v_cache, batch.block_tables, batch.context_lens, batch.query_start_loc,
            q.shape[-1] ** -0.5, *scales, **options,
        )  # [T, H, D]  # fmt: skip
        check_mixed(mixed, q)
        return kernels.from_kernels(mixed, q)  # [T, H, D]

    return attend


def check_mixed(mixed: Any, q: Array) -> None:
    """Raise KernelArgumentError unless what an attention function returned is [T, H, D], like q."""
    what = getattr(mixed, "shape", type(mixed).__name__)
    if what != tuple(q.shape):
        raise KernelArgumentError(f"the attention function returned {what}; it must return an array of {(*q.shape,)}.")


def like_q(mixed: Floats, q: Array) -> Array:
    """[T, H, D] of NumPy in the library and dtype of q."""
    if is_ready(q) and is_ready(mixed) and q.dtype == mixed.dtype:
        return mixed  # [T, H, D]
    return array_namespace(q).asarray(mixed, dtype=q.dtype)  # [T, H, D]


def as_numpy(array: Array, cache: Floats | None = None) -> Floats:
    """[...] in NumPy, in float32 at least: what kernels on the CPU compute in. If possible, the same memory.

    cache: where the array goes; if that holds the bits of bfloat16, such numbers stay these.
    """
    if is_ready(array):
        return array  # [...]
    if is_torch_array(array):  # what the array API calls by other names would take longer than to convert these
        if cache is not None and cache.dtype == np.uint16 and array.dtype == array_namespace(array).bfloat16:
            return array.view(array_namespace(array).uint16).numpy()  # [...]
        return (array.float() if array.element_size() < 4 else array).numpy()  # [...]
    xp = array_namespace(array)
    return np.asarray(xp.astype(array, xp.float32) if xp.finfo(array.dtype).bits < 32 else array)  # [...]


def is_ready(array: Array) -> TypeGuard[Floats]:
    """Whether kernels on the CPU take it as it is. To ask the array API takes a microsecond, for each q, k and v."""
    return type(array) is np.ndarray and array.dtype in FLOATS
