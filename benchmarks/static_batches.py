"""transformers' `generate` in static batches, for `benchmarks.headline`: the contender that takes too long to wait for.

Served like that, 512 requests take a quarter of an hour on an H200. A step's time depends on how large the batch is and
how long its texts are, and on nothing else. So of every batch these are run, by `generate` itself:

    its real prompts    and the first steps behind them
    NUM_POINTS - 1      short stretches of steps further on, the last of which ends where the batch ends: `generate`
                        goes on from a cache of that length

All other steps lie between two that were timed in the same batch, and their times are read off the straight line
between these. As a check, one batch is then generated from its first token to its last, or for as long as there is
time, and what it took stands beside what the stretches say of it.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.headline_peers import Task, load, rate

LARGEST_BATCH = 128  # which is too many already for 80 GB and a model of 7B
NUM_POINTS = 5  # lengths at which a batch's steps are timed
STRETCH = 8  # steps timed at each


Batch = list[tuple[list[int], int]]  # token ids, tokens wanted


class Stretch(NamedTuple):
    """Steps that were run one after the other."""

    first: int  # which token of its batch's texts the first of them makes; token 0 is the prompts'
    seconds: list[float]  # of each

    @property
    def middle(self) -> float:
        return self.first + (len(self.seconds) - 1) / 2

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


class Timed(NamedTuple):
    """What was timed of a batch."""

    prompts: float  # seconds until token 0
    stretches: list[Stretch]

    def __str__(self) -> str:
        steps = ", ".join(f"{1e3 * each.median:.0f} ms at {each.middle:.0f}" for each in self.stretches)
        return f"prompts {self.prompts:.2f} s; a step {steps}"

    @property
    def num_steps(self) -> int:
        return sum(len(stretch.seconds) for stretch in self.stretches)

    def seconds(self, num_tokens: int) -> float:
        """Of the first `num_tokens` of each text. Medians: memory that has to be found anew now and then counts for
        nothing, in favour of these batches."""
        middles, medians = [each.middle for each in self.stretches], [each.median for each in self.stretches]
        return self.prompts + float(np.interp(np.arange(1, num_tokens), middles, medians).sum())


def static(task: Task) -> dict[str, Any]:
    """All requests in the order of arrival, in the largest batches that do not run out of memory: neither with prompts
    as wide as the widest, nor in a step at the length at which the longest text ends."""
    import torch

    model = load(task)
    size = largest_batch(model, task)
    while True:
        try:
            return served(model, task, size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size == 1:
                return {"error": "out of memory with a batch of one"}
            size = size * 7 // 8


def served(model: Any, task: Task, size: int) -> dict[str, Any]:
    batches = [task.requests[i : i + size] for i in range(0, len(task.requests), size)]
    if task.weights:
        rows = [generate(model, batch, task.device)[1] for batch in batches]
        return {"texts": [row[:n] for made, batch in zip(rows, batches) for row, (_, n) in zip(made, batch)]}
    generate(model, batches[0], task.device, num_steps=STRETCH)  # to warm up
    known = [timed(model, batch, task.device) for batch in batches]
    seconds = sum(each.seconds(longest_of(batch)) for each, batch in zip(known, batches))
    result = rate(sum(n for _, n in task.requests), seconds, len(task.requests))
    result |= {"batch_size": size, "steps": sum(longest_of(batch) - 1 for batch in batches)}
    result["steps_run"] = sum(each.num_steps for each in known)
    return result | whole(model, batches[0], known[0], task)


def whole(model: Any, batch: Batch, known: Timed, task: Task) -> dict[str, Any]:
    """A batch from its first token on, as far as it comes in `limit` seconds; and what its stretches say of that."""
    times, _ = generate(model, batch, task.device, limit=task.limit)
    found = {"whole_steps": len(times) - 1, "whole_of": longest_of(batch) - 1, "whole_seconds": times[-1]}
    found["whole_worked_out"] = known.seconds(len(times))
    print(found, file=sys.stderr, flush=True)
    return found


def timed(model: Any, batch: Batch, device: str) -> Timed:
    """Stretches from the batch's first step to its last."""
    num_steps = longest_of(batch) - 1
    count = min(STRETCH, num_steps)
    times, _ = generate(model, batch, device, num_steps=count)
    stretches = [Stretch(1, np.diff(times).tolist())]
    starts = np.linspace(1, num_steps - count + 1, NUM_POINTS).astype(int)  # [NUM_POINTS]
    for first in sorted({*starts.tolist()} - {0, 1, 2}):
        # the step before them does not count: in it memory is found anew
        later, _ = generate(model, batch, device, num_steps=count, behind=first - 2)
        stretches.append(Stretch(first, np.diff(later).tolist()))
    found = Timed(times[0], stretches)
    print(f"{len(batch)} requests: {found}", file=sys.stderr, flush=True)
    return found


def longest_of(batch: Batch) -> int:
    return max(n for _, n in batch)


# ---- one call of `generate`


def generate(
    model: Any, batch: Batch, device: str, *, num_steps: int | None = None, limit: float = 1e9, behind: int = 0
) -> tuple[list[float], list[list[int]]]:
    """Times of the batch's tokens since its beginning, in seconds, and the tokens.

    num_steps: how many steps behind the prompts' (None: until the longest text ends), if `limit` seconds suffice.
    behind: go on with a cache that has the prompts and this many tokens more; of what, makes no difference.
    """
    import torch
    from transformers import StoppingCriteriaList

    width = max(len(p) for p, _ in batch)
    padding = [width - len(p) for p, _ in batch]
    ids = torch.tensor([[0] * pad + p for pad, (p, _) in zip(padding, batch)], device=device)  # [batch, width]
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=device)  # [batch, width]
    others: dict[str, Any] = {}
    if behind:
        made = torch.ones((len(batch), behind + 1), dtype=ids.dtype, device=device)  # [batch, behind + 1]
        ids, mask = torch.cat([ids, made], 1), torch.cat([mask, made], 1)  # [batch, width + behind + 1] each
        others["past_key_values"] = filled_cache(model, len(batch), width + behind)
    count = longest_of(batch) if num_steps is None else num_steps + 1
    times: list[float] = []

    def note_time(input_ids: Any, scores: Any, **_: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
        return torch.full((len(input_ids),), times[-1] > limit, device=input_ids.device)  # [batch]

    with torch.inference_mode():
        if device == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([note_time]), **others,
        )  # [batch, width + behind + count]  # fmt: skip
    return times, out[:, ids.shape[1] :].tolist()


def filled_cache(model: Any, size: int, length: int) -> Any:
    """A cache of that many tokens, all K and V of which are 0. # [size, heads, length, head_size] in each layer"""
    import torch
    from transformers import DynamicCache

    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = size, heads, length, config.hidden_size // config.num_attention_heads
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        kv = torch.zeros(shape, dtype=model.dtype, device=model.device)  # [size, heads, length, head_size]
        cache.update(kv, kv.clone(), layer)
        del kv
    return cache


# ---- how large a batch may be


def largest_batch(model: Any, task: Task) -> int:
    """To within a twelfth."""
    high = min(task.max_num_seqs, LARGEST_BATCH, len(task.requests))
    if task.device != "cuda" or fits(model, high, task):
        return high
    low = high * 3 // 4
    while low > 1 and not fits(model, low, task):
        low, high = low * 3 // 4, low
    while high - low > max(1, low // 12):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(model, middle, task) else (low, middle)
    return max(1, low)


def fits(model: Any, size: int, task: Task) -> bool:
    """Whether a batch's prompts, and its last steps, run without going out of memory."""
    import torch

    prompt, output = max(len(p) for p, _ in task.requests), max(n for _, n in task.requests)
    widest = [([1] * prompt, output)] * size
    try:
        generate(model, widest, task.device, num_steps=1)
        generate(model, widest, task.device, num_steps=1, behind=output - 2)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
