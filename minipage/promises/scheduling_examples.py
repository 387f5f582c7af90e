"""What examples of schedulers share: a scheduler, requests, and a step without a model.

A plan is written as a list of (name of the sequence, first token, number of tokens).
"""

from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import POLICIES, Scheduler, Sequence, SequenceGroup


def make(num_blocks=100, block_size=4, max_num_seqs=8, max_num_batched_tokens=100, **options):
    """A scheduler, of class `cls`; `num_swap_blocks`, `caching`, and `policy` as a name, besides its own options."""
    pool, num_swap_blocks = BlockPool(num_blocks, block_size), options.pop("num_swap_blocks", None)
    options["swap_pool"] = BlockPool(num_swap_blocks, block_size) if num_swap_blocks else None
    options["prefix_cache"] = PrefixCache(pool) if options.pop("caching", False) else None
    policy = options.pop("policy", "fcfs")
    options["policy"] = policy if callable(policy) else POLICIES[policy]
    return options.pop("cls", Scheduler)(pool, max_num_seqs, max_num_batched_tokens, **options)


def add(scheduler, name, num_prompt=0, num_generated=10, n=1, **options):
    """Add a request of `n` samples, or of beams if `width` is given; `prompt` instead of the tokens 0, 1, 2, ..."""
    prompt, width = options.pop("prompt", list(range(num_prompt))), options.pop("width", n)
    names = [name] if n == 1 else [f"{name}.{i}" for i in range(n)]
    sequences = [Sequence(each, prompt, BlockTable(scheduler.block_pool)) for each in names]
    group = SequenceGroup(name, sequences, len(prompt) + num_generated, width, **options)
    scheduler.add(group)
    return group


def step(scheduler):
    """Schedule, let the fake model add a token wherever it can, update. Returns what was planned."""
    plan = scheduler.schedule()
    chunks = written(plan)
    finish_step(scheduler, plan)
    return chunks


def finish_step(scheduler, plan):
    """What follows when the model has run. The samples of a request get different tokens, by their number."""
    receivers = [(chunk.group, seq) for chunk in plan.chunks for seq in chunk.receivers]
    scheduler.update(plan)
    for group, seq in receivers:
        _, _, number = seq.seq_id.partition(".")
        seq.token_ids.append(len(seq.token_ids) + 100 * int(number or 0))
        if len(seq.token_ids) == group.max_num_tokens:
            scheduler.finish(group, seq)
    scheduler.check_integrity()


def written(plan):
    return [(chunk.seq.seq_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]


def names(groups):
    return [group.group_id for group in groups]


def blocks(group):
    """The block table of each sequence."""
    return [list(seq.block_table) for seq in group.sequences]


def shown(plan):
    """A plan in a line."""
    chunks = ", ".join(f"{name} tokens {start}-{start + num - 1}" for name, start, num in written(plan)) or "nothing"
    if plan.preempted:
        chunks += f"; preempted {names_of(plan.preempted)}"
    for what in ("swap_out", "swap_in", "copies"):
        if there := getattr(plan, what):
            chunks += f"; {what} {[tuple(pair) for pair in there]}"
    return chunks


def names_of(groups):
    """Of whatever a plan has for groups: a learner's may have something else."""
    return [group.group_id if isinstance(group, SequenceGroup) else group for group in groups]
