"""The checks of the museum: small, fixed scenarios on the real engine, watched by the engine machine's slot oracle.

Each takes a function that makes a watched engine, and fails with words for somebody who has just made the mistake.
"""

import numpy as np

from minipage.errors import InvalidRequestError, OutOfBlocksError
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.sampling import SamplingParams

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


def greedy(max_tokens, **others):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **others)


def add(llm, prompt, max_tokens=4, **others):
    return llm.add_request(prompt, greedy(max_tokens, **others))


def run(llm, most_steps=100):
    """Step until all is done, and check everything on the way; the last output of each request, by id."""
    last = {}
    for _ in range(most_steps):
        if not llm.has_unfinished_requests():
            break
        for output in llm.step():
            before = last.get(output.request_id, output).outputs[0].token_ids
            now = output.outputs[0].token_ids
            assert now[: len(before)] == before, f"{before} was generated, and now it is {now}: tokens were lost"
            last[output.request_id] = output
        llm.scheduler.check_integrity()
    else:
        raise AssertionError(f"after {most_steps} steps, {llm.scheduler.waiting} wait and {llm.scheduler.running} run")
    assert llm.block_pool.num_used == 0, f"{llm.block_pool.num_used} blocks are still in use: they leaked"
    return last


def texts(outputs):
    return [output.outputs[0].token_ids for output in outputs.values()]


def assert_right(llm, outputs):
    for output in outputs.values():
        prompt, found = output.prompt_token_ids, output.outputs[0].token_ids
        due = llm.dense.greedy(prompt, len(found))
        assert found == due, f"{prompt} goes on with {due}, but this engine says {found}"


def preempting(engine, **options):
    """Three requests in a pool that holds two of them."""
    llm = engine(block_size=2, num_blocks=12, **options)
    for i in range(3):
        add(llm, PROMPT[i : i + 3], max_tokens=14)
    outputs = run(llm)
    assert_right(llm, outputs)
    assert sum(o.metrics.num_preemptions for o in outputs.values()) > 0, "this pool is too large to preempt anybody"
    return llm


# ---- one visit for each kind of mistake


def an_evicted_prefix_is_not_found(engine):
    llm = engine(block_size=2, num_blocks=4, enable_prefix_caching=True)
    for prompt in (PROMPT[:5], PROMPT[3:], PROMPT[:5]):
        add(llm, prompt, max_tokens=2)
        assert_right(llm, run(llm))


def a_prompt_that_is_cached_to_the_last_token_is_served(engine):
    llm = engine(block_size=4, num_blocks=8, enable_prefix_caching=True)
    for _ in range(2):
        add(llm, PROMPT)
        assert_right(llm, run(llm))
    assert llm.scheduler.num_hit_tokens == 4, "8 tokens in 2 blocks: one is found, one computed"


def a_preempted_request_finds_its_own_beginning(engine):
    llm = preempting(engine, enable_prefix_caching=True)
    assert llm.scheduler.preempted_hits > 0, "nothing was found after the preemption"


def a_prompt_in_chunks_says_the_same(engine):
    llm = engine(block_size=4, num_blocks=8, max_num_batched_tokens=3)
    add(llm, PROMPT)
    assert_right(llm, run(llm))


def preemption_by_recomputation_changes_nothing(engine):
    preempting(engine)


def preemption_by_swapping_changes_nothing(engine):
    preempting(engine, preemption="swap", swap_space="64KiB")


def a_full_swap_space_stops_nobody(engine):
    preempting(engine, preemption="swap", swap_space="1KiB")


def what_can_never_fit_is_refused_on_arrival(engine):
    llm = engine(block_size=2, num_blocks=4)
    try:
        add(llm, PROMPT[:3], max_tokens=20)
    except InvalidRequestError as error:
        assert "whole pool has 4" in str(error), f"the message should say how large the pool is: {error}"
        return
    try:
        run(llm)
    except Exception as error:
        raise AssertionError(
            "3 + 20 tokens were accepted, which 4 blocks of 2 can never hold. Refuse such a request on arrival: "
            f"later there is only a crash, or no end of preemptions ({error!r})"
        ) from error


def equal_prompts_of_one_step_share_their_blocks(engine):
    llm = engine(block_size=4, num_blocks=16, enable_prefix_caching=True)
    for _ in range(3):
        add(llm, PROMPT)
    llm.step()
    used = llm.block_pool.num_used
    assert used == 2, f"three equal prompts of two full blocks each hold {used} blocks: duplicates were kept"
    assert_right(llm, run(llm))


def no_tokens_means_no_tokens(engine):
    llm = engine(block_size=4, num_blocks=8)
    try:
        llm.add_request(PROMPT[:3], SamplingParams(temperature=0, max_tokens=0, ignore_eos=True))
    except InvalidRequestError:
        return
    for _ in range(5):
        told = [len(output.outputs[0].token_ids) for output in llm.step() if not output.finished]
    assert not told, f"max_tokens=0 was accepted, and {told[0]} tokens later there is no end: compare lengths with >="


def every_token_has_a_place_whatever_the_block_size(engine):
    for size in (1, 2, 4):
        table = BlockTable(BlockPool(16, size))
        for length in range(1, 10):
            table.append(1)
            due = -(-length // size)
            assert len(table) == due, f"{length} tokens in blocks of {size} take {due} blocks, not {len(table)}"


def arrivals_do_not_stop_those_who_run(engine):
    llm = engine(block_size=4, num_blocks=32)
    first = add(llm, PROMPT[:3], max_tokens=6)
    for i in range(10):
        add(llm, [i], max_tokens=1)
        llm.step()
    got = len(llm.requests[first].output().outputs[0].token_ids) if first in llm.requests else 6
    assert got == 6, f"10 steps brought a running request {got} tokens: it starves while new prompts keep coming"


def blocks_come_back(engine):
    llm = engine(block_size=4, num_blocks=8)
    add(llm, PROMPT)
    assert_right(llm, run(llm))


def samples_write_into_blocks_of_their_own(engine):
    llm = engine(block_size=4, num_blocks=16)
    llm.add_request(PROMPT[:6], SamplingParams(n=3, seed=1, max_tokens=5, ignore_eos=True))
    run(llm)


def one_up_and_its_neighbour_down_is_another_text(engine):
    llm = engine(block_size=4, num_blocks=16, enable_prefix_caching=True)
    for prompt in ([5, 6, 7, 8, 9], [5, 7, 6, 8, 9], [4, 7, 7, 8, 9]):
        add(llm, prompt)
        assert_right(llm, run(llm))


def nobody_can_predict_a_key(engine):
    hashes = {(cache := PrefixCache(BlockPool(4, 4))).block_hash(cache.root_hash(""), PROMPT[:4]) for _ in range(2)}
    assert len(hashes) == 2, (
        "two engines know a text by the same hash, so anybody can work out hashes, and search for two texts with one: "
        "hash under a secret that is drawn for each process"
    )


def the_unused_tail_of_a_block_is_never_read(engine):
    llm = engine(block_size=4, num_blocks=8)
    llm.kv_cache.k[:] = llm.kv_cache.v[:] = np.nan
    add(llm, PROMPT[:3])
    assert_right(llm, run(llm))


def a_request_that_has_to_wait_holds_nothing(engine):
    llm = engine(block_size=2, num_blocks=6, enable_prefix_caching=True)
    add(llm, PROMPT[:5], max_tokens=6)
    llm.step()
    add(llm, PROMPT, max_tokens=4)  # finds two blocks of the first, but there is no room for the rest
    assert_right(llm, run(llm))


def a_free_block_that_is_found_is_no_longer_free(engine):
    llm = engine(block_size=2, num_blocks=6, enable_prefix_caching=True)
    add(llm, PROMPT[:6], max_tokens=1)
    run(llm)  # leaves three free blocks that can be found
    add(llm, [30, 31, 32], max_tokens=4)  # takes two others
    llm.step()
    add(llm, PROMPT, max_tokens=4)  # finds three: all of what is free but one
    llm.scheduler.block_pool.check_integrity(seq.block_table for g in llm.scheduler.running for seq in g.sequences)
    try:
        assert_right(llm, run(llm))
    except OutOfBlocksError as error:
        raise AssertionError(
            "a request was let in without room. A cached block that is still in the free queue has to leave it, so it "
            f"counts as needed, too ({error})"
        ) from error


def the_head_of_a_prefix_outlives_its_tail(engine):
    llm = engine(block_size=2, num_blocks=6, enable_prefix_caching=True)
    for prompt in (PROMPT, [30, 31, 32, 33, 34], PROMPT):  # the second needs one block more than nobody knows
        add(llm, prompt, max_tokens=1)
        assert_right(llm, run(llm))
    hits = llm.scheduler.num_hit_tokens
    assert hits == 6, f"{hits} of 8 tokens were found: one block was reused, and it should have been the prefix's tail"


def a_twin_that_goes_leaves_the_other_findable(engine):
    llm = engine(block_size=4, num_blocks=8, enable_prefix_caching=True)
    _, twin = add(llm, PROMPT, max_tokens=12), add(llm, PROMPT, max_tokens=12)
    llm.step()
    llm.abort(twin)
    add(llm, list(range(20, 37)), max_tokens=3)  # takes every free block, the twin's too
    llm.step()
    add(llm, [*PROMPT, 1], max_tokens=1)
    assert_right(llm, {i: o for i, o in run(llm).items() if i != twin})
    hits = llm.scheduler.num_hit_tokens
    assert hits == 8, f"{hits} tokens found, of 8 in a block that is in use: it was forgotten together with its twin"
