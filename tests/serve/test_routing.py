"""Who gets a request: the index of prefixes beside the caches themselves, and the router beside its rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.engine.kv_events import AllBlocksCleared, Announced, BlockRemoved, BlockStored, KVEvents
from minipage.memory import PrefixCache
from minipage.promises.prefix_machine import PrefixMachine
from minipage.serve.replicas.routing import LeftToRay, Prefixes, PrefixRouter, RoundRobin


class Announcing(Announced, PrefixCache):
    medium = "CPU"

    def __init__(self, pool):
        super().__init__(pool)
        self.events = KVEvents(buffer_steps=3)
        self.prefixes, self.subscriber = Prefixes(), self.events.subscribe()


class Machine(PrefixMachine):
    """Whatever the cache finds of a text, its index says as well; and nothing more."""

    Cache = Announcing

    @invariant()
    def the_index_says_what_the_cache_finds(self):
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        while batch := cache.subscriber.take():
            for event in batch.events:
                cache.prefixes.apply(event)
        for salt, *tokens in {text for text in self.texts.values() if len(text) > 1} | {("salt", 0, 0, 1, 0)}:
            found = cache.find([*tokens, 9], salt).blocks  # one more: a cache leaves the last token to be computed
            assert cache.prefixes.num_known([*tokens, 9], salt) == len(found) * self.block_size


def test_the_index_of_a_replica_says_what_its_cache_finds():
    run(Machine, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))


@pytest.mark.slow
def test_the_index_says_what_the_cache_finds_in_longer_programs():
    run(Machine, settings=settings(max_examples=1000, stateful_step_count=60, deadline=None))


def stored(*blocks, parent=None, salt=""):
    hashes = [repr((parent, salt, blocks[: i + 1])).encode() for i in range(len(blocks))]
    extra_keys = [(salt,), *[None] * (len(blocks) - 1)] if salt else None
    return BlockStored(hashes, parent, [token for block in blocks for token in block], 2, extra_keys=extra_keys)


replicas = st.dictionaries(st.sampled_from("ABCD"), st.integers(0, 12), min_size=1)
texts = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=4)


@given(
    loads=replicas,
    caches=st.dictionaries(st.sampled_from("ABCDE"), st.lists(texts, max_size=3)),
    prompt=texts,
    most_ahead=st.integers(0, 9),
)
def test_the_longest_prefix_wins_unless_its_replica_is_overloaded(loads, caches, prompt, most_ahead):
    router = PrefixRouter(most_ahead)
    for name, held in caches.items():
        router.tell(name, [stored(*blocks) for blocks in held if blocks])

    def common(one, other):
        return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))

    chosen = router.choose([token for block in prompt for token in block], "", loads)
    known = {name: max([common(prompt, held) for held in caches.get(name, [])], default=0) for name in loads}
    open_ones = [name for name in loads if loads[name] - min(loads.values()) <= most_ahead]
    assert chosen in open_ones
    assert known[chosen] == max(known[name] for name in open_ones)
    equals = [name for name in open_ones if known[name] == known[chosen]]
    assert loads[chosen] == min(loads[name] for name in equals)


def test_equals_take_turns():
    router = PrefixRouter()
    assert [router.choose([1, 2, 3], "", {"A": 0, "B": 0, "C": 0}) for _ in range(6)] == [*"ABCABC"]


def test_what_is_removed_cleared_or_of_another_salt_is_not_known():
    prefixes, text = Prefixes(), [1, 1, 2, 2, 3, 3]
    whole = stored((1, 1), (2, 2), (3, 3))
    prefixes.apply(whole)
    assert (prefixes.num_known(text), prefixes.num_known([*text, 4, 4]), prefixes.num_known(text, "salt")) == (6, 6, 0)
    prefixes.apply(BlockRemoved(whole.block_hashes[1:2]))
    assert prefixes.num_known(text) == 2
    [_, again, _] = whole.apart()
    prefixes.apply(again)
    assert prefixes.num_known(text) == 6, "the third block was never removed"
    prefixes.apply(stored((7, 7), salt="salt"))
    assert (prefixes.num_known([7, 7], "salt"), prefixes.num_known([7, 7])) == (2, 0)
    prefixes.apply(AllBlocksCleared())
    assert prefixes.num_known(text) == 0


def test_a_replica_that_is_forgotten_knows_nothing():
    router = PrefixRouter()
    router.tell("B", [stored((1, 1))])
    assert router.choose([1, 1], "", {"A": 0, "B": 3}) == "B"
    router.forget("B")
    assert router.choose([1, 1], "", {"A": 0, "B": 3}) == "A"


def test_the_others():
    around, loads = RoundRobin(), {"B": 5, "A": 0}
    assert [around.choose([1], "", loads) for _ in range(4)] == [*"ABAB"]
    assert LeftToRay().choose([1], "", loads) is None
