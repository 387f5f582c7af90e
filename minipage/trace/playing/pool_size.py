"""How large a pool a story needs, with whatever texts and sizes the viewer chooses.

A story says how much of what its requests could grow to fits into the pool (`room`): 2.0 leaves half of it empty, and
with 0.7 somebody has to give way. For requests of other lengths, or blocks of another size, the pool is of the same
share. Whether it does run dry then (or does not, if it must not) is rehearsed: the real scheduler plays the story with
tokens that nobody computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from minipage.memory import BlockPool, BlockTable
from minipage.model.checkpoint import SHIPPED_MODEL, describe_model
from minipage.scheduling import POLICIES, SequenceGroup
from minipage.scheduling import Sequence as TokenSequence
from minipage.scheduling.first_chunk import scheduler_for
from minipage.trace.playing.story import Arrival, Scenario

MOST_REHEARSALS = 64  # sizes that are tried
BYTES_OF_FLOAT32 = 4


class Ask(NamedTuple):
    """What one request will ask of the pool."""

    arrival: Arrival
    num_prompt_tokens: int
    max_num_tokens: int  # the prompt included

    def max_blocks(self, block_size: int) -> int:
        return self.group(0, BlockPool(1, block_size)).max_blocks(block_size)

    def group(self, number: int, pool: BlockPool) -> SequenceGroup:
        """It, as the scheduler knows it; of the tokens only their number matters."""
        tokens = [0] * self.num_prompt_tokens
        seqs = [TokenSequence(f"{number}.{i}", tokens, BlockTable(pool)) for i in range(self.arrival.num_seqs)]
        return SequenceGroup(str(number), seqs, self.max_num_tokens, len(seqs), priority=-number)


def pool_for(scenario: Scenario, options: dict[str, Any]) -> dict[str, Any]:
    """Options of LLM for the memory of a story; none, if the engine will refuse its requests and say why."""
    block_size = options["block_size"]
    if block_size < 1:
        return {}
    architecture, tokenizer = describe_model(options.get("model", SHIPPED_MODEL), options.get("hf_overrides"))
    if tokenizer is None:
        return {}
    asks = []
    for arrival in scenario.arrivals:
        num_prompt_tokens = len(tokenizer.encode(arrival.prompt))
        most = options.get("max_model_len", architecture.max_model_len)
        asks.append(Ask(arrival, num_prompt_tokens, min(num_prompt_tokens + arrival.max_tokens, most)))
    if not all(0 < ask.num_prompt_tokens < ask.max_num_tokens for ask in asks):
        return {"num_blocks": max(1, scenario.num_slots // block_size)} if scenario.num_slots else {}
    if scenario.num_slots:
        needs = [ask.max_blocks(block_size) for ask in asks]
        alone_and_side_by_side = max(needs), min(sum(needs), 2 * len(needs))
        return {"num_blocks": max(scenario.num_slots // block_size, *alone_and_side_by_side)}
    num_blocks = blocks_for(asks, block_size, scenario.room, scenario.runs_dry, options)
    kv = architecture.kv
    numbers = 2 * kv.num_layers * kv.num_kv_heads * kv.head_size  # that a token leaves behind: K and V
    num_bytes = num_blocks * block_size * numbers * BYTES_OF_FLOAT32
    swap_space = {} if "swap_space" in options else {"swap_space": num_bytes}
    is_quantized = "kv_cache_dtype" in scenario.engine  # the story is what fits into memory that was made for float32
    return swap_space | ({"memory": num_bytes} if is_quantized else {"num_blocks": num_blocks})


def blocks_for(asks: Sequence[Ask], block_size: int, room: float, runs_dry: bool, options: dict[str, Any]) -> int:
    """Blocks for a pool of `room` times what all requests could grow to, and which runs dry, or never does.

    It holds each request alone in any case. `options`: of LLM.
    """
    needs = [ask.max_blocks(block_size) for ask in asks]
    least = max(needs)
    wanted: int = max(least, round(room * sum(needs)))
    sizes = range(least, sum(needs)) if runs_dry else range(wanted, wanted + sum(needs) + 1)
    few = sizes[:: max(1, len(sizes) // MOST_REHEARSALS)]
    nearest_first: list[int] = sorted({wanted, *few}, key=lambda size: abs(size - wanted))
    for size in nearest_first:
        if rehearse(asks, BlockPool(size, block_size), options) == runs_dry:
            return size
    return wanted  # it cannot be; the story says so at its end


def rehearse(asks: Sequence[Ask], pool: BlockPool, options: dict[str, Any]) -> bool:
    """Whether somebody has to give way in this pool."""
    names = ("max_num_seqs", "max_num_batched_tokens", "watermark")
    chosen = {name: options[name] for name in names if name in options}
    make = scheduler_for(None, options.get("scheduler_reserve_full_isl", True))
    scheduler = make(pool, policy=POLICIES.get(options.get("policy", "fcfs"), POLICIES["fcfs"]), **chosen)
    coming = dict(enumerate(asks))
    ends = dict[int, int]()
    steps_done = 0
    while coming or scheduler.has_unfinished:
        for number in [number for number, ask in coming.items() if ask.arrival.is_due(steps_done, ends)]:
            scheduler.add(coming.pop(number).group(number, pool))
        plan = scheduler.schedule()
        if plan.preempted:
            return True
        receivers = [(chunk.group, seq) for chunk in plan.chunks for seq in chunk.receivers]
        scheduler.update(plan)
        steps_done += 1
        for group, seq in receivers:
            seq.token_ids.append(0)
            if len(seq.token_ids) == group.max_num_tokens:
                scheduler.finish(group, seq)
                ends[int(group.group_id)] = steps_done
    return False
