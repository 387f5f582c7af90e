"""A museum of bugs that users of real paged-KV engines ran into.

Each exhibit puts one of them into minipage (mutants.py says how) and shows that a check (visits.py) catches it, with
words that say what went wrong. Without the bug, the same check passes. All 23 can be built into this engine, although
number 22 only by first breaking what makes it impossible: here equal blocks are joined as soon as they are full.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from engine.slot_oracle import SlotOracle, WatchedLLM
from museum import mutants as m
from museum import visits as v

from minipage.errors import MinipageError


class Exhibit(NamedTuple):
    number: str
    seen_in: str
    bug: str
    mutant: dict[str, Any]  # where a function lives: the broken one
    check: Any  # from visits.py
    words: str  # a regular expression that the failure message has to match


READ = r"slot \d+ is read for the tokens .* but holds"
BATCH = "minipage.worker.runner.make_batch"
MUSEUM = [
    Exhibit("1", "nano-vllm #163", "a block that is reused keeps its old hash",
            {m.CACHE + "forget": m.forgets_nothing}, v.an_evicted_prefix_is_not_found,
            "has to be forgotten when it is reused"),
    Exhibit("2", "nano-vllm #114, #144", "a prompt that is cached wholly leaves no token to compute",
            {m.CACHE + "find": m.finds_the_whole_prompt}, v.a_prompt_that_is_cached_to_the_last_token_is_served,
            r"has no \d+ tokens to compute"),
    Exhibit("3", "nano-vllm #207, #211, #233", "tokens are counted before the prefix is looked up",
            {m.SCHEDULER + "_admit": m.counts_before_it_looks}, v.a_preempted_request_finds_its_own_beginning,
            r"has no \d+ tokens to compute"),
    Exhibit("4", "nano-vllm #213", "a chunk of a prompt attends only to itself",
            {BATCH: m.chunk_length_for_key_length}, v.a_prompt_in_chunks_says_the_same,
            r"tokens are attended to, where \[\d+\] are there"),
    Exhibit("5", "nano-vllm #103", "after a preemption only the prompt is computed again",
            {m.GROUP + "restart": m.recomputes_only_the_prompt, m.SCHEDULER + "update": m.believes_the_rest_is_there},
            v.preemption_by_recomputation_changes_nothing, f"{READ} nothing that can be trusted"),
    Exhibit("6", "nano-vllm #67", "decodes have their position off by one",
            {BATCH: m.decodes_one_position_late}, v.blocks_come_back, r"holds a [KV] not of"),
    Exhibit("7", "nano-vllm #274, #277", "a request that outgrows the whole pool is taken",
            {m.GROUP + "max_blocks": m.needs_one_block}, v.what_can_never_fit_is_refused_on_arrival,
            "Refuse such a request on arrival"),
    Exhibit("8", "nano-vllm #219", "equal prompts of one step keep a copy of each block",
            {m.CACHE + "publish": m.publishes_every_block}, v.equal_prompts_of_one_step_share_their_blocks,
            r"hold 6 blocks: duplicates were kept"),
    Exhibit("9a", "nano-vllm", "max_tokens=0 never ends, because lengths are compared with ==",
            {"minipage.sampling.SamplingParams.__post_init__": m.accepts_anything,
             m.SCHEDULER + "add": m.accepts_anything,
             "minipage.engine.completion.Completion.add_token": m.stops_when_equal}, v.no_tokens_means_no_tokens,
            "max_tokens=0 was accepted"),
    Exhibit("9b", "nano-vllm", "blocks of one token: no length leaves the remainder 1",
            {m.TABLE + "blocks_to_allocate": m.grows_at(1)}, v.every_token_has_a_place_whatever_the_block_size,
            "1 tokens in blocks of 1 take 1 blocks, not 0"),
    Exhibit("9c", "nano-vllm", "prompts go first, so steady arrivals starve whoever is running",
            {m.SCHEDULER + "schedule": m.prompts_first}, v.arrivals_do_not_stop_those_who_run, "it starves"),
    Exhibit("10", "MinivLLM #75, #85", "a block is added when the last one is full instead of when it is needed",
            {m.TABLE + "blocks_to_allocate": m.grows_at(0)}, v.every_token_has_a_place_whatever_the_block_size,
            "1 tokens in blocks of 2 take 1 blocks, not 0"),
    Exhibit("11", "MinivLLM #84", "a block that nobody shares is never free again",
            {m.POOL + "free": m.frees_below_zero}, v.blocks_come_back, "reference count 0 and is not in the free"),
    Exhibit("12", "MinivLLM #98", "hits are counted as computed, but their blocks are not in the table",
            {m.CACHE + "adopt": m.adopts_the_length_but_not_the_blocks},
            v.a_prompt_that_is_cached_to_the_last_token_is_served, f"{READ} nothing that can be trusted"),
    Exhibit("13", "a tutorial", "preemption drops the tokens generated so far",
            {m.SCHEDULER + "preempt": m.drops_what_was_generated}, v.preemption_by_recomputation_changes_nothing,
            "tokens were lost"),
    Exhibit("14", "a small engine", "swapping copies the data and keeps the block",
            {m.TABLE + "move_to": m.moves_without_freeing}, v.preemption_by_swapping_changes_nothing, "it leaked"),
    Exhibit("15", "a small engine", "a fork never copies, so writers overwrite each other",
            {m.TABLE + "shared_tail": m.never_copies}, v.samples_write_into_blocks_of_their_own,
            r"writes to block \d+, which 3 share"),
    Exhibit("16", "Megatron-LM #4158", "one token up and its neighbour down make the same hash",
            {m.CACHE + "block_hash": m.key_by_sum}, v.one_up_and_its_neighbour_down_is_another_text,
            f"{READ} the K and V of"),
    Exhibit("17", "vLLM #12621", "anybody can predict a hash",
            {m.CACHE + "__init__": m.knows_no_secret}, v.nobody_can_predict_a_key, "under a secret"),
    Exhibit("18", "vLLM's tests", "NaN in the unused tail of a block gets into attention",
            {"minipage.attention.reference.paged_attention": m.multiplies_the_tail_by_zero},
            v.the_unused_tail_of_a_block_is_never_read, "computed from a slot that nobody wrote"),
    Exhibit("19", "vLLM's tests", "an admission that fails keeps its references to cached blocks",
            {m.SCHEDULER + "admission": m.keeps_what_it_looked_at}, v.a_request_that_has_to_wait_holds_nothing,
            "it leaked"),
    Exhibit("20", "vLLM's tests", "cached blocks in the free queue do not count as needed",
            {m.SCHEDULER + "admission": m.takes_found_blocks_for_a_gift},
            v.a_free_block_that_is_found_is_no_longer_free, "let in without room"),
    Exhibit("21", "vLLM's tests", "the head of a prefix is freed, and so reused, before its tail",
            {m.TABLE + "free": m.frees_the_head_first}, v.the_head_of_a_prefix_outlives_its_tail,
            "should have been the prefix's tail"),
    Exhibit("22", "vLLM's tests", "of two equal blocks, one takes the other's entry with it",
            {m.CACHE + "publish": m.publishes_twins}, v.a_twin_that_goes_leaves_the_other_findable,
            "forgotten together with its twin"),
    Exhibit("23", "vLLM #546", "when swap space is used up, nobody runs any more",
            {m.SCHEDULER + "_make_room": m.waits_for_swap_space}, v.a_full_swap_space_stops_nobody,
            "a step computes nothing"),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiny, dense):
    """Makes watched engines."""
    dense_kv = lru_cache(10_000)(dense.kv)

    def make(**options):
        llm = WatchedLLM(tiny, SlotOracle(dense_kv), **options)
        llm.dense = dense
        return llm

    return make


@pytest.mark.parametrize("exhibit", MUSEUM, ids=lambda exhibit: f"{exhibit.number}-{exhibit.check.__name__}")
def test_the_bug_is_caught(engine, monkeypatch, exhibit):
    for place, broken in exhibit.mutant.items():
        monkeypatch.setattr(place, broken)
    with pytest.raises((AssertionError, MinipageError), match=exhibit.words):
        exhibit.check(engine)


@pytest.mark.parametrize("check", dict.fromkeys(exhibit.check for exhibit in MUSEUM), ids=lambda check: check.__name__)
def test_without_the_bug_the_check_passes(engine, check):
    check(engine)


def test_every_bug_of_the_list_is_here():
    assert {int(exhibit.number.rstrip("abc")) for exhibit in MUSEUM} == set(range(1, 24))
