"""Questions whose numbers are drawn. Each asks the engine's own part for the answer: nothing here knows it.

A question that is easy to get wrong by a habit of mind (an off-by-one, sharing that does not end where it
seems to) is a good one. The sources are lessons of minipage, and sections of the PagedAttention paper
(arXiv 2309.06180).
"""

from __future__ import annotations

import random

import numpy as np

from minipage.attention import reference
from minipage.attention.cache_size import blocks_that_fit
from minipage.attention.kv_cache import KVCache
from minipage.attention.quantize import quantize
from minipage.errors import count
from minipage.learn.quiz.paper import Question, joined
from minipage.learn.quiz.steps import shared_budget, steps_in_buckets
from minipage.memory import BlockPool, BlockTable, PrefixCache, blocks_needed
from minipage.model.gpt2 import GPT2
from minipage.model.shard import Shard
from minipage.simulate import Request, mean_held, worked_example

DTYPES = {"float32": np.float32, "float16": np.float16, "int8 with a scale of 4 bytes for each head's row": np.int8}


def bytes_of(cache: KVCache) -> int:
    return sum(array.nbytes for array in cache.arrays)


def some_tokens(rng: random.Random, length: int) -> list[int]:
    return [rng.randint(1, 999) for _ in range(length)]


# ---- lesson 1, 4: counting


def blocks_of_a_text(rng: random.Random) -> Question:
    size, tokens = rng.choice([4, 8, 16, 32]), rng.randint(20, 2000)
    text = (
        f"A text has {tokens} tokens. How many blocks of {size} tokens does it take, and how many slots of the "
        "last are empty?"
    )
    table = BlockTable(BlockPool(600, size))
    table.append(tokens)
    empty = len(table) * size - table.num_tokens
    return Question(text, f"{count(len(table), 'block')}, {count(empty, 'empty slot')}", "Lesson 4; paper, section 4.2")


def next_block(rng: random.Random) -> Question:
    size, tokens = rng.choice([2, 4, 8, 16]), rng.randint(2, 400)
    table = BlockTable(BlockPool(500, size))
    table.append(tokens)
    before, more = len(table), 0
    while len(table) == before:
        table.append(1)
        more += 1
    text = (
        f"Blocks hold {size} tokens, and a text has {tokens} of them in the cache. With which of the next tokens "
        "(the 1st, 2nd, ...) does it take another block?"
    )
    return Question(text, f"with the {ordinal(more)}", "Lesson 4; paper, section 4.3")


def ordinal(number: int) -> str:
    return f"{number}{'th' if number % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def slot_of_a_token(rng: random.Random) -> Question:
    size = rng.choice([4, 8, 16])
    pool = BlockPool(40, size)
    for block in rng.sample(range(40), 30):
        pool.revive(block)
    table = BlockTable(pool)
    table.append(rng.randint(3 * size, 5 * size))
    at = rng.randrange(table.num_tokens)
    [slot] = table.slot_mapping(at, at + 1)
    text = (
        f"Blocks hold {size} tokens. A block table is {table.blocks}. In which slot of the cache are the K and V "
        f"of token {at} (the first is token 0)?"
    )
    return Question(text, f"slot {slot}", "Lesson 4; paper, section 4.2")


def wasted_by_reserving(rng: random.Random) -> Question:
    longest, size = rng.choice([512, 1024, 2048]), rng.choice([8, 16, 32])
    lengths = [rng.randint(20, longest) for _ in range(3)]
    slots = worked_example(lengths, longest, size)
    reserved, paged = (1 - slots.num_tokens / taken for taken in (slots.contiguous, slots.paged))
    text = (
        f"Three requests end up with {joined(lengths)} tokens. What share of the memory is wasted if each "
        f"reserves {longest} slots, and what share if it is paged in blocks of {size}?"
    )
    return Question(text, f"{reserved:.1%} reserved, {paged:.2%} paged", "Lesson 1; paper, section 3.1")


def how_many_fit(rng: random.Random) -> Question:
    layers, heads, size = rng.choice([12, 24, 32]), rng.choice([4, 8, 32]), 16
    gib, tokens = rng.randint(2, 20), rng.randint(100, 3000)
    blocks = blocks_that_fit(f"{gib}GiB", size, layers, heads, 128, np.float16)
    each = blocks_needed(tokens, size)
    text = (
        f"A model has {layers} layers and {heads} heads of K and V, of 128 float16 numbers each. How many "
        f"requests of {tokens} tokens fit into {gib} GiB (GiB = 2³⁰ bytes), in blocks of {size}?"
    )
    answer = f"{count(blocks // each, 'request')} ({blocks} blocks, {each} for each)"
    return Question(text, answer, "Lessons 1 and 13; paper, section 3")


def bytes_of_a_token(rng: random.Random) -> Question:
    layers, heads, head = rng.randint(12, 80), rng.choice([1, 4, 8, 16, 32]), rng.choice([64, 80, 96, 128])
    name = rng.choice([*DTYPES])
    answer = bytes_of(KVCache(layers, 1, 1, heads, head, DTYPES[name]))
    text = (
        f"How many bytes does one token take in the KV cache of a model with {layers} layers and "
        f"{count(heads, 'head')} of K and V of {head} numbers, in {name}?"
    )
    return Question(text, f"{answer} bytes", "Lessons 10 and 14; paper, section 3")


# ---- lesson 3: the pool


def queue_after_calls(rng: random.Random) -> Question:
    pool = BlockPool(rng.randint(5, 8), 4)
    calls = [f"pool = BlockPool(num_blocks={pool.num_blocks}, block_size=4)"]
    held = pool.allocate_many(rng.randint(2, 4))
    calls.append(f"pool.allocate_many({len(held)})")
    for _ in range(rng.randint(4, 6)):
        in_use = [block for block in range(pool.num_blocks) if pool.ref_count(block)]
        what = rng.choice(["allocate", "free", "free", "share"] if in_use else ["allocate"])
        if what == "allocate" and pool.num_free:
            pool.allocate()
            calls.append("pool.allocate()")
        elif what != "allocate":
            block = rng.choice(in_use)
            getattr(pool, what)(block)
            calls.append(f"pool.{what}({block})")
    text = "What is the free queue after these calls, next block first?\n\n" + "\n".join(
        f"    {call}" for call in calls
    )
    return Question(text, joined(pool.free_queue), "Lesson 3; minipage/memory/block_pool.py")


def references_after_forks(rng: random.Random) -> Question:
    size, children = rng.choice([2, 4]), rng.randint(1, 4)
    pool = BlockPool(60, size)
    parent = BlockTable(pool)
    prompt, more = rng.randint(3, 6 * size), rng.randint(1, 3)
    parent.append(prompt)
    tables = [parent, *(parent.fork() for _ in range(children))]
    copies = sum(len(table.append(more)) for table in tables)
    text = (
        f"Blocks hold {size} tokens. A prompt of {prompt} tokens is computed once, its table is forked "
        f"{count(children, 'time')}, and then each of the {children + 1} texts gets {count(more, 'token')} more. How "
        "many blocks are in use, and how many of them are copies?"
    )
    shared = sum(pool.ref_count(block) > 1 for block in range(60))
    answer = f"{pool.num_used} blocks ({shared} of them shared), of which {copies} are copies"
    return Question(text, answer, "Lesson 7; paper, section 4.4")


def copy_on_write(rng: random.Random) -> Question:
    size = rng.choice([4, 8])
    pool = BlockPool(12, size)
    for block in rng.sample(range(12), 5):
        pool.revive(block)
    parent = BlockTable(pool)
    parent.append(rng.randint(size + 1, 3 * size))
    child = parent.fork()
    before, free = list(child.blocks), pool.free_queue
    copies = child.append(1)
    text = (
        f"Blocks hold {size} tokens. Parent and child both have the table {before}, with {parent.num_tokens} "
        f"tokens in it; the free queue is {list(free)}. The child gets one token. Which block is copied to which, "
        "and what is the child's table afterwards?"
    )
    said = joined(f"block {copy.source} to block {copy.destination}" for copy in copies)
    return Question(text, f"copied: {said}; table {child.blocks}", "Lesson 7; paper, section 4.4")


# ---- lesson 8: prefixes


def found_in_the_cache(rng: random.Random) -> Question:
    size = rng.choice([4, 8, 16])
    cache = PrefixCache(BlockPool(100, size))
    first = some_tokens(rng, rng.randint(3 * size, 6 * size))
    same = rng.randint(size // 2, len(first))
    second = first[:same] + some_tokens(rng, rng.randint(0, 2 * size))
    table = BlockTable(cache.pool)
    table.append(len(first))
    cache.publish(table, first)
    found = len(cache.find(second).blocks)
    text = (
        f"Blocks hold {size} tokens. A text of {len(first)} tokens is in the prefix cache. Another one has "
        f"{len(second)} tokens, of which the first {same} are the same. How many of its tokens need not be "
        "computed?"
    )
    return Question(text, f"{found * size} ({count(found, 'block')})", "Lesson 8; minipage/memory/prefix_cache.py")


def one_token_differs(rng: random.Random) -> Question:
    size, blocks = rng.choice([4, 8, 16]), rng.randint(4, 9)
    cache = PrefixCache(BlockPool(100, size))
    first = some_tokens(rng, size * blocks + rng.randint(1, size - 1))
    at = rng.randrange(size, len(first))
    table = BlockTable(cache.pool)
    table.append(len(first))
    cache.publish(table, first)
    second = [*first[:at], first[at] + 1000, *first[at + 1 :]]
    found = len(cache.find(second).blocks)
    text = (
        f"Blocks hold {size} tokens, and a text of {len(first)} tokens is cached. The same text comes again with "
        f"another token {at} (counted from 0). How many blocks are found?"
    )
    return Question(text, count(found, "block"), "Lesson 8: each hash contains the one before it")


def evicted_first(rng: random.Random) -> Question:
    size, blocks = rng.choice([4, 8, 16]), rng.randint(3, 12)
    cache = PrefixCache(BlockPool(blocks + rng.randint(1, 9), size))
    tokens = some_tokens(rng, size * blocks + 1)
    table = BlockTable(cache.pool)
    table.append(size * blocks)
    cache.publish(table, tokens)
    table.free()
    taken = rng.randint(1, cache.pool.num_free)
    cache.pool.allocate_many(taken)
    found = len(cache.find(tokens).blocks)
    text = (
        f"A pool of {cache.pool.num_blocks} blocks of {size} tokens; a text of {size * blocks} tokens filled "
        f"{blocks} of them (0 to {blocks - 1}), was published, and gave them back. Then another request takes "
        f"{count(taken, 'block')}. How many blocks of the old text can still be found from its beginning?"
    )
    return Question(text, count(found, "block"), "Lessons 4 and 8: a table is freed from its end")


# ---- lessons 5, 6, 9, 10, 12, 13


def attention_by_hand(rng: random.Random) -> Question:
    powers = [rng.randint(0, 3) for _ in range(4)]
    values = [rng.randint(0, 9) for _ in range(4)]
    k = (np.array(powers, np.float32) * np.log(2, dtype=np.float32)).reshape(
        2, 2, 1, 1
    )  # [num_blocks, block_size, 1, 1]
    v = np.array(values, np.float32).reshape(2, 2, 1, 1)  # [num_blocks, block_size, 1, 1]
    q = np.ones((1, 1, 1), np.float32)  # [num_tokens, num_heads, head_size]
    out = reference.paged_attention(q, k, v, np.array([[0, 1]]), np.array([4]), np.array([0, 1]), 1.0)  # [1, 1, 1]
    scores = joined(f"{power} ln 2" for power in powers)
    text = (
        f"A query has the scores {scores} with four tokens, whose values are {joined(values)}. What is the output "
        "of attention? (e to the power of n ln 2 is 2 to the power of n.)"
    )
    return Question(text, f"{float(out[0, 0, 0]):.3f}", "Lesson 5; paper, section 4.1")


def scaled_to_int8(rng: random.Random) -> Question:
    largest = rng.randint(2, 60)
    row = [rng.choice([-1, 1]) * largest, *(rng.randint(-largest, largest) / 2 for _ in range(3))]
    codes, scales = quantize(np.array([row], np.float32), np.int8)  # [1, 4], [1]
    text = (
        f"A row of K is {row}. It is kept as int8 codes from -127 to 127 and one scale. What are the codes, and "
        "what is the scale?"
    )
    return Question(text, f"codes {joined(codes[0].tolist())}; scale {float(np.ravel(scales)[0]):.4g}", "Lesson 10")


def bytes_of_a_block(rng: random.Random) -> Question:
    size, layers = rng.choice([8, 16, 32]), rng.randint(6, 40)
    heads, head = rng.choice([2, 4, 8, 12]), rng.choice([64, 128])
    plain, quantized = (bytes_of(KVCache(layers, 1, size, heads, head, dtype)) for dtype in (np.float32, np.int8))
    text = (
        f"How many bytes has a block of {size} tokens, in {layers} layers with {heads} heads of {head} numbers, "
        "in float32, and how many in int8 with a scale of 4 bytes for each row?"
    )
    return Question(text, f"{plain} and {quantized} ({plain / quantized:.2f} times as many)", "Lesson 10")


def heads_of_a_rank(rng: random.Random) -> Question:
    ranks, per_rank, head = rng.choice([2, 4, 8]), rng.randint(1, 8), rng.choice([2, 3, 4, 5, 6, 8, 10, 12])
    width = ranks * per_rank * head
    model = GPT2(vocab_size=8, n_positions=8, n_embd=width, n_layer=1, n_head=ranks * per_rank)
    rank = Shard(model, 0, ranks)
    shapes = dict(rank.weights())
    q, k, v = (shapes[f"h.0.attn.{name}.weight"].shape for name in "qkv")
    text = (
        f"The layer that makes q, k and v has a weight of {width} by {3 * width}, for {ranks * per_rank} heads. "
        f"With {ranks} ranks, what shape has the part of one rank?"
    )
    return Question(text, f"{q[0]} by {q[1] + k[1] + v[1]}: q, k and v of {count(rank.num_heads, 'head')}", "Lesson 12")


def held_while_running(rng: random.Random) -> Question:
    requests = [Request(10 * rng.randint(5, 40), 10 * rng.randint(2, 60)) for _ in range(2)]
    held = mean_held(requests)
    one, other = (f"{r.num_prompt_tokens} tokens of prompt and {r.num_output_tokens} of answer" for r in requests)
    text = (
        f"Half of the requests have {one}, the other half {other}. How many slots does a running request hold on "
        "average, seen at any moment?"
    )
    return Question(text, f"{held:.0f} slots", "Lessons 1 and 13: long answers are seen more often")


def samples_of_a_prompt(rng: random.Random) -> Question:
    size, samples = rng.choice([8, 16]), rng.randint(2, 8)
    prompt, answer = rng.randint(50, 500), rng.randint(20, 200)
    pool = BlockPool(2000, size)
    first = BlockTable(pool)
    first.append(prompt)
    tables = [first, *(first.fork() for _ in range(samples - 1))]
    for table in tables:
        table.append(answer)
    alone = samples * blocks_needed(prompt + answer, size)
    text = (
        f"One prompt of {prompt} tokens, {samples} samples of {answer} tokens each, blocks of {size}. How many "
        "blocks are in use at the end, and how many would it be if nothing were shared?"
    )
    return Question(
        text, f"{pool.num_used} and {alone} ({1 - pool.num_used / alone:.0%} saved)", "Lesson 7; paper, section 6.3"
    )


KINDS = [
    blocks_of_a_text, next_block, slot_of_a_token, wasted_by_reserving, how_many_fit, bytes_of_a_token,
    queue_after_calls, references_after_forks, copy_on_write, found_in_the_cache, one_token_differs, evicted_first,
    attention_by_hand, shared_budget, scaled_to_int8, bytes_of_a_block, heads_of_a_rank, steps_in_buckets,
    held_while_running, samples_of_a_prompt,
]  # fmt: skip
