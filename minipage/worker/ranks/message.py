"""What rank 0 tells the others, as one flat array of int32.

    [ total │ kind │ n │ n lengths │ token_ids │ positions │ slot_mapping │ block_tables │ ... │ swaps │ copies │ ... ]
      ───────── HEAD ──────────
      ─────────────────── PIECE: always sent ────────────────────│── what is left, if anything

The first piece says how long all of it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from minipage.memory import BlockCopy
from minipage.scheduling import StepPlan
from minipage.simd.arrays import Integers
from minipage.worker.batch import Batch

HEAD = 64  # numbers
PIECE = 4096
STEP, CALL = range(2)


class Step(NamedTuple):
    """What a step does, without a word about whom it is done for."""

    plan: StepPlan  # only swaps and copies
    batches: list[Batch]  # one for each group of layers with its block tables; empty: nothing is computed


def pack(kind: int, arrays: Sequence[Integers]) -> Integers:
    """Several arrays of whole numbers, whatever their shapes, as a message [PIECE or more]."""
    sizes = [array.size for array in arrays]
    total = HEAD + sum(sizes)
    message = np.empty(max(total, PIECE), np.int32)  # [PIECE or more]
    message[:HEAD] = [total, kind, len(sizes), *sizes, *[0] * (HEAD - 3 - len(sizes))]
    np.concatenate([array.ravel() for array in arrays], out=message[HEAD:total], casting="same_kind")
    return message


def unpack(message: Integers) -> tuple[int, list[Integers]]:
    """(kind, the arrays, each flat)."""
    _, kind, num_arrays, *sizes = message[:HEAD].tolist()
    return kind, np.split(message[HEAD:], np.cumsum(sizes[:num_arrays]))[:-1]


def length(piece: Integers) -> int:
    """How long a message is that begins with this piece."""
    return max(int(piece[0]), PIECE)


def pack_step(plan: StepPlan, batches: Sequence[Batch]) -> Integers:
    copies = [np.array(each, np.int32) for each in (plan.swap_out, plan.swap_in, plan.copies)]  # [n, 2] each
    own = [array for batch in batches[1:] for array in (batch.slot_mapping, batch.block_tables)]  # of other groups
    return pack(STEP, [*copies, *chain.from_iterable(batches[:1]), *own])


def unpack_step(arrays: list[Integers]) -> Step:
    swap_out, swap_in, copies, *numbers = arrays
    plan = StepPlan(pairs(swap_out), pairs(swap_in), pairs(copies))
    if not numbers:
        return Step(plan, [])
    token_ids, positions, slot_mapping, tables, context_lens, query_start_loc, sampled_rows, *own = numbers
    batch = Batch(
        token_ids=token_ids.astype(np.int64),
        positions=positions.astype(np.int64),
        slot_mapping=slot_mapping.astype(np.int64),
        block_tables=tables.reshape(len(context_lens), -1),
        context_lens=context_lens,
        query_start_loc=query_start_loc,
        sampled_rows=sampled_rows.astype(np.int64),
    )
    batches = [batch]
    for slot_mapping, tables in zip(own[::2], own[1::2]):
        parts = {"slot_mapping": slot_mapping.astype(np.int64), "block_tables": tables.reshape(len(context_lens), -1)}
        batches.append(batch._replace(**parts))
    return Step(plan, batches)


def pairs(numbers: Integers) -> list[BlockCopy]:
    return [BlockCopy(*pair) for pair in numbers.reshape(-1, 2).tolist()]


def pack_call(name: str, arguments: dict[str, Any]) -> Integers:
    """Something rarer than a step."""
    text = json.dumps([name, arguments]).encode()
    return pack(CALL, [np.frombuffer(text, np.uint8)])


def unpack_call(arrays: list[Integers]) -> tuple[str, dict[str, Any]]:
    name, arguments = json.loads(arrays[0].astype(np.uint8).tobytes())
    return name, arguments
