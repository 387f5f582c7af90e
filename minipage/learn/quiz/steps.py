"""Questions of scheduling whose numbers are drawn. The scheduler plans the steps; nothing here knows the answers."""

from __future__ import annotations

import random

from minipage.engine.stats import Histogram, Stats
from minipage.errors import count
from minipage.learn.quiz.paper import Question, joined
from minipage.memory import BlockPool, BlockTable
from minipage.scheduling import Scheduler, Sequence, SequenceGroup


def scheduler_with(prompts: list[int], answer: int, budget: int) -> Scheduler:
    scheduler = Scheduler(BlockPool(200, 4), max_num_batched_tokens=budget)
    for i, length in enumerate(prompts):
        prompt = Sequence(str(i), [1] * length, BlockTable(scheduler.block_pool))
        scheduler.add(SequenceGroup(str(i), [prompt], length + answer))
    return scheduler


def shared_budget(rng: random.Random) -> Question:
    wanted = [1] * rng.randint(1, 4) + [rng.randint(5, 60) for _ in range(3)]
    budget = rng.randint(len(wanted), sum(wanted))
    plan = scheduler_with(wanted, 1, budget).schedule()
    computed = {chunk.seq.seq_id: chunk.num_tokens for chunk in plan.chunks}
    shares = [computed.get(str(i), 0) for i in range(len(wanted))]
    text = (
        f"A step computes at most {budget} tokens (`max_num_batched_tokens`). In order, the sequences have "
        f"{joined(wanted)} tokens left. How many does each compute in this step?"
    )
    return Question(text, joined(shares), "Lesson 6; vLLM's chunked prefill")


def steps_in_buckets(rng: random.Random) -> Question:
    prompts, budget = [rng.randint(5, 90) for _ in range(3)], rng.choice([24, 32, 40, 48])
    answer, bound = rng.randint(2, 6), rng.choice([8.0, 16.0])
    seen = tokens_of_steps(prompts, answer, budget)
    below = sum(number for limit, number in zip(seen.buckets, seen.counts) if limit <= bound)
    text = (
        f"Three prompts of {joined(prompts)} tokens arrive at once, and each is answered with {answer} tokens. A step "
        f"computes at most {budget} tokens (`max_num_batched_tokens`). How many steps does that take, and what does "
        f'/metrics then say for `vllm:iteration_tokens_total_bucket{{le="{bound}"}}`, the steps of at most {bound:g} '
        "tokens?"
    )
    return Question(text, f"{count(seen.count, 'step')}, {below} of them", "Lessons 6 and 13; vLLM's metrics")


def tokens_of_steps(prompts: list[int], answer: int, budget: int) -> Histogram:
    """How many tokens each step computes until all have their answers."""
    scheduler, stats = scheduler_with(prompts, answer, budget), Stats(longest=200)
    while scheduler.groups:
        plan = scheduler.schedule()
        stats.count_step(plan)
        scheduler.update(plan)
        for chunk in plan.chunks:
            for seq in chunk.receivers:
                seq.token_ids.append(1)
                if len(seq.token_ids) == chunk.group.max_num_tokens:
                    scheduler.finish(chunk.group, seq)
    return stats.look(scheduler)["vllm:iteration_tokens_total"]  # type: ignore[no-any-return]
