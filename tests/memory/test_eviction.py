"""The order of eviction is a part: which free block loses its contents next, and what that does to hit rates.

Each workload of benchmarks/eviction.py is one that some policy loses: the numbers are hit rates, in tokens.
"""

import random

import pytest

from benchmarks.eviction import table
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.memory.eviction import EVICTIONS, ScanResistant
from minipage.sampling import SamplingParams

NAMES = list(EVICTIONS)


@pytest.fixture(scope="module")
def rates():
    return table()


def test_who_waits_for_nothing_to_come_again_loses_to_scans(rates):
    scans = rates["scans"]
    assert min(scans["lfu"], scans["scan-resistant"]) > 2 * max(scans["lru"], scans["tails-first"])


def test_who_never_forgets_a_success_loses_when_fashions_change(rates):
    fashions = rates["fashions"]
    assert fashions["lfu"] < 0.5 * min(fashions[name] for name in NAMES if name != "lfu")


def test_chats_go_on_where_they_were_so_what_was_just_used_should_stay(rates):
    chats = rates["chats"]
    assert chats["lfu"] < 0.5 * chats["lru"]
    assert chats["scan-resistant"] < chats["lru"] < chats["tails-first"], "a tail is found by nobody: let it go first"


@pytest.mark.parametrize("name", NAMES)
def test_every_order_gives_every_block_once_and_revives_any(name):
    pool = BlockPool(12, 2, EVICTIONS[name])
    cache = PrefixCache(pool)
    rng = random.Random(3)
    tables = []
    for i in range(400):
        if tables and (rng.random() < 0.4 or pool.num_free < 4):
            tables.pop(rng.randrange(len(tables))).free()
        else:
            token_ids = [rng.randrange(2) for _ in range(rng.randrange(1, 7))]
            table = BlockTable(pool)
            cache.adopt(table, *cache.find(token_ids))
            table.append(len(token_ids) - table.num_tokens)
            cache.publish(table, token_ids)
            tables.append(table)
        pool.check_integrity(tables)
        assert len(set(pool.free_queue)) == len(pool.free_queue) == pool.num_free == 12 - pool.num_used, i


def test_of_what_was_found_again_at_most_half_of_the_pool_is_kept_before_all_others():
    pool = BlockPool(6, 1, ScanResistant)
    blocks = pool.allocate_many(6)
    for block in blocks:
        pool.free(block)
    for block in (0, 1, 2, 3):
        pool.revive(block)
        pool.free(block)
    assert pool.free_queue == (4, 5, 0, 1, 2, 3), "4 and 5 were never found; 0 was, but three others since"
    pool.free(pool.allocate())
    assert pool.free_queue == (5, 0, 4, 1, 2, 3), "what was handed out holds something new, which nobody has found yet"


@pytest.mark.parametrize("eviction", [*NAMES, ScanResistant])
def test_no_order_changes_a_token(eviction):
    plain, other = (
        LLM(block_size=4, num_blocks=24, enable_prefix_caching=True, **o) for o in ({}, {"eviction": eviction})
    )
    params = SamplingParams(temperature=0, max_tokens=8)
    for prompt in ("To be", "To be, or not", "JULIET:", "To be, or not to be, that is"):
        assert other.generate(prompt, params)[0].outputs[0].text == plain.generate(prompt, params)[0].outputs[0].text
    other.scheduler.check_integrity()


def test_an_unknown_order_is_refused_and_so_is_one_beside_a_pool_that_is_ready():
    with pytest.raises(ConfigurationError, match="eviction is 'mru'; it must be a function or one of lru, tails-first"):
        LLM(num_blocks=8, eviction="mru")
    with pytest.raises(ConfigurationError, match="eviction would have no effect"):
        LLM(block_pool=BlockPool(8), eviction="lfu")


@pytest.mark.parametrize("queue", [None, [], set(), 5])
def test_what_makes_no_queue_is_refused(queue):
    for make in (lambda order: BlockPool(8, eviction=order), lambda order: LLM(num_blocks=8, eviction=order)):
        with pytest.raises(ConfigurationError, match=r"eviction has made .*; it must make a mapping"):
            make(lambda pool: queue)
